"""Small trainings in warm processes that end in every way: ``python -m tests.warm FOLDER``.

Prints, as a line of JSON each, what was tried and the processes of every try, job by job.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil

from b3_core.config import ComputeSpec
from b3_core.errors import B3Error, InputError, StoppedError
from b3_core.ray_session import RaySession


def loop(config, *, rank, progress, report, stopping):
    """Write a line a try; end as the config says, but for the last time as a training does."""
    log = Path(config["log"])
    tries = len(log.read_text().splitlines()) if log.exists() else 0
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    progress(1, 2)
    how = config["ends"][tries]
    if how == "refuses":
        raise InputError("no", remedy="none")
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "orphaned":  # what tells it and its flow of one another dies
        boards = [
            process
            for process in psutil.Process().parent().children()  # of this Ray's node
            if "ray::_Board" in " ".join(process.cmdline())
        ]
        assert boards
        for process in boards:
            process.kill()
    if how == "told":
        os.kill(os.getpid(), signal.SIGTERM)
        while not stopping():
            time.sleep(0.01)
        raise StoppedError("stopped", remedy="again")


def tried(session, folder, what, *ends):
    """Run a job for each of ``ends``, which are how its tries end."""
    logs = [folder / f"{what}-{job}" for job in range(len(ends))]
    configs = [{"log": str(log), "ends": how} for log, how in zip(logs, ends, strict=True)]
    try:
        session.train(loop, configs, storage=str(folder), gpu=False)
    except B3Error as error:
        what = f"{type(error).__name__}: {error}"
        if error.remedy != "none":
            what = f"{type(error).__name__}: {error.problem}"
    print(json.dumps({"what": what, "tries": [log.read_text().split() for log in logs]}))


def main(folder):
    with RaySession(ComputeSpec(workers=2)) as session:
        tried(session, folder, "first", ["whole"], ["whole"])
        tried(session, folder, "again", ["whole"], ["whole"])
        tried(session, folder, "told", ["told", "whole"])
        tried(session, folder, "killed", ["killed", "killed", "whole"])
        tried(session, folder, "orphaned", ["orphaned"])
        tried(session, folder, "refused", ["refuses"])
        tried(session, folder, "given up", ["killed"] * 3)
    with RaySession(ComputeSpec(workers=1)) as session:
        tried(session, folder, "alone", ["killed", "killed", "whole"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
