"""Settings of a run without a server, made before Prefect is imported: it reads them then."""

import logging
import os
import warnings
from pathlib import Path

_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "TOKENIZERS_PARALLELISM": "true",
    # Weights come from where CONFIG says; only a pinned hub id switches this off, by hand.
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def prepare(*, verbose: bool) -> None:
    """Set the environment of this process and its children.

    With ``PREFECT_API_URL`` set, runs are reported to that server. Otherwise Prefect keeps a
    private database under the user's cache folder and serves itself while the command runs.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO" if verbose else "CRITICAL")
    if "PREFECT_API_URL" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        os.environ.setdefault("PREFECT_HOME", str(cache / "b3" / "prefect"))
        os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "true")
    if not verbose:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
