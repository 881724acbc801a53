"""A run that needs no server: Prefect serves itself from a thread while the command runs.

A thread, not Prefect's own subprocess: it ends with the command even when that is killed, and it
starts twice as fast. ``prepare`` comes before Prefect is imported, since it reads settings then.
"""

import concurrent.futures.thread  # noqa: F401 - registers its own end when it is imported
import logging
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from b3_core.errors import B3Error

_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # as deployments have it
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "TOKENIZERS_PARALLELISM": "true",
    # Weights come from where CONFIG says; only a pinned hub id needs this off, set by hand.
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
_STARTUP_SECONDS = 120


def prepare(*, verbose: bool) -> None:
    """Set the environment of this process and its children."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO" if verbose else "CRITICAL")
    if "PREFECT_API_URL" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        os.environ.setdefault("PREFECT_HOME", str(cache / "b3" / "prefect"))
    if not verbose:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)


def serve() -> None:
    """Serve Prefect's API on a loopback port until exit, unless ``PREFECT_API_URL`` names a server.

    Raises
    ------
    B3Error
        The server did not start.
    """
    if "PREFECT_API_URL" in os.environ:
        return
    home = Path(os.environ["PREFECT_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
    stops: list[Callable[[], None]] = []
    # Registered before Prefect is imported, so that it runs after Prefect's own handlers of this
    # kind: they deliver the last events, and would wait for a server that is gone. But before
    # concurrent.futures' own, and so not by `atexit`: without its threads the server cannot end,
    # and the process died of it now and then (exit codes -6 and -11).
    threading._register_atexit(lambda: [stop() for stop in stops])
    import uvicorn  # noqa: PLC0415
    from prefect.server.api.server import create_app  # noqa: PLC0415

    server = uvicorn.Server(uvicorn.Config(create_app(ephemeral=True), log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join(timeout=10)

    stops.append(stop)
    deadline = time.monotonic() + _STARTUP_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise B3Error(
                "the embedded Prefect server did not start",
                remedy=f"look at {home}, or set PREFECT_API_URL",
            )
        time.sleep(0.02)
