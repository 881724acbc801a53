"""The worker that waits for its runs: what it does when it is told to stop."""

import asyncio
import time
import uuid

import anyio

from deployments.worker import _drain


class Client:
    def __init__(self):
        self.set = []

    async def set_flow_run_state(self, run, state, *, force):
        self.set.append((run, state.type.value, force))


class Worker:
    """What `_drain` uses of Prefect's worker."""

    name = "w1"

    def __init__(self):
        self.limiter = anyio.CapacityLimiter(100)
        self.client = Client()


def test_takes_no_more_and_ends_when_its_runs_have():
    async def scene():
        worker, run = Worker(), uuid.uuid4()
        worker.limiter.acquire_on_behalf_of_nowait(run)
        draining = asyncio.create_task(_drain(worker, 30))
        await asyncio.sleep(0.3)
        assert not draining.done()
        try:
            worker.limiter.acquire_on_behalf_of_nowait(uuid.uuid4())
        except anyio.WouldBlock:
            refused = True
        worker.limiter.release_on_behalf_of(run)
        await asyncio.wait_for(draining, 5)
        assert refused
        assert worker.client.set == []

    asyncio.run(scene())


def test_marks_what_is_left_when_time_is_up():
    async def scene():
        worker, runs = Worker(), [uuid.uuid4(), uuid.uuid4()]
        for run in runs:
            worker.limiter.acquire_on_behalf_of_nowait(run)
        began = time.monotonic()
        await _drain(worker, 0.5)
        assert 0.4 < time.monotonic() - began < 5
        assert sorted(worker.client.set) == sorted((run, "CRASHED", True) for run in runs)

    asyncio.run(scene())
