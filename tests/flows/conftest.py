import logging
import os
import signal
import sys

import pytest
from prefect.context import refresh_global_settings_context

from flows import embedded
from flows.cli import main


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """One embedded Prefect server for the commands that run inside the test process."""
    os.environ.setdefault("PREFECT_HOME", str(tmp_path_factory.getbasetemp() / "prefect-inside"))
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    embedded.prepare(verbose=True)
    # Other tests have imported Prefect, which read its settings then: before these, and before
    # there was a server.
    refresh_global_settings_context()
    embedded.serve()
    refresh_global_settings_context()


@pytest.fixture
def command(served, monkeypatch, capfd):
    """Return a function that runs ``b3`` in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["b3", *map(str, arguments)])
        interrupted = signal.getsignal(signal.SIGINT)
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:  # it lets go of Ctrl-C at its end, and this process does not end with it
            signal.signal(signal.SIGINT, interrupted)
        logging.disable(logging.NOTSET)
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    return run
