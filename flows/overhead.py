"""The flow ``overhead``: shards that do nothing but wait, to see what surrounds the work."""

import time

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from b3_core.bench.overhead import Idle
from b3_core.config import ComputeSpec
from b3_core.ray_session import TASKS_AT_ONCE, RaySession, session
from tasks import reporting


@task(name="wait", cache_policy=NO_CACHE)
def wait(ray: RaySession, seconds: float) -> None:
    """Lease a warm actor for one shard, as a teacher's is leased."""
    ray.pool(Idle, seconds).call("run")


@flow(
    name="overhead",
    task_runner=ThreadPoolTaskRunner(max_workers=TASKS_AT_ONCE),
    persist_result=False,
)
def overhead(shards: int, seconds: float, compute: ComputeSpec) -> dict[str, float]:
    """Run shards of ``seconds`` each; return what they took, actors being warm."""
    with session(compute) as ray:
        pool = ray.pool(Idle, seconds)
        for _ in range(pool.size):
            pool.call("run")
        began = time.monotonic()
        with reporting.step("wait") as progress:
            futures = [wait.submit(ray, seconds) for _ in range(shards)]
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                progress(done, shards)
        took = time.monotonic() - began
        work = shards * seconds / pool.size
    return {"workers": pool.size, "seconds": round(took, 2), "work_seconds": round(work, 2)}
