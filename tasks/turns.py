"""What runs have in common with others: turns at GPUs, and the tags that automations look for."""

import contextlib
from collections.abc import Iterator

from prefect.concurrency.sync import concurrency

from b3_core.config import ComputeSpec

#: A global concurrency limit; bootstrap makes it. Where there is none, nobody waits.
GPU_LIMIT = "b3-gpu"

#: Of runs that are part of another run.
PART = "b3-part"


@contextlib.contextmanager
def gpu_turn(compute: ComputeSpec) -> Iterator[None]:
    """Hold one of the turns at the GPUs while the block runs, if its work uses any.

    Within a run Ray shares GPUs out; this keeps a second run from waiting inside Ray, where nobody
    sees it and where it would hold what it got so far.
    """
    if not compute.gpus_per_worker:
        yield
        return
    with concurrency(GPU_LIMIT, occupy=1):
        yield
