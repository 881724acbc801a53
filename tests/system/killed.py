"""Run ``b3`` and die by SIGKILL just before the first artifact of a stage is published.

    python -m tests.system.killed STAGE run CONFIG

Everything the stage does is done and its data files lie in the store; only the record is missing.
"""

import os
import signal
import sys

from b3_core.store import ArtifactStore
from flows.cli import main

if __name__ == "__main__":
    stage = sys.argv.pop(1)
    publish = ArtifactStore._publish

    def killed(self, address, record):
        if address.stage == stage:
            os.kill(os.getpid(), signal.SIGKILL)
        publish(self, address, record)

    ArtifactStore._publish = killed
    main()
