"""A Prefect worker that lets its runs end.

    python -m deployments.worker

At SIGTERM ``prefect worker start`` kills its runs at once and leaves them ``Running`` on the server
(Prefect 3.9). This one takes no more runs, waits for those it has, and marks as crashed what is
still running when it may wait no longer.
"""

import asyncio
import contextlib
import signal
import socket
from typing import Annotated

import typer
from prefect.states import Crashed
from prefect.workers.process import ProcessWorker

from deployments import POOL


async def _work(name: str, limit: int, seconds: float) -> None:
    worker = ProcessWorker(work_pool_name=POOL, name=name, limit=limit)
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    working = asyncio.create_task(worker.start(with_healthcheck=True, printer=typer.echo))
    waiting = asyncio.create_task(told.wait())
    await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if not working.done():
        if worker.is_setup:
            await _drain(worker, seconds)
        working.cancel()
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await working


async def _drain(worker: ProcessWorker, seconds: float) -> None:
    """Wait until no run is left; what is left when time is up is marked as crashed."""
    limiter = worker.limiter
    typer.echo(f"no more runs; waiting up to {seconds:g} s for {limiter.borrowed_tokens}")
    deadline = asyncio.get_running_loop().time() + seconds
    while limiter.borrowed_tokens and asyncio.get_running_loop().time() < deadline:
        limiter.total_tokens = limiter.borrowed_tokens  # so there is none for another run
        await asyncio.sleep(0.2)
    for run in limiter.statistics().borrowers:
        with contextlib.suppress(Exception):  # the server may be gone too
            await worker.client.set_flow_run_state(
                run, Crashed(message=f"{worker.name} was told to stop"), force=True
            )


def main(
    *,
    name: Annotated[str, typer.Option(help="As the server shows it.")] = socket.gethostname(),
    limit: Annotated[int, typer.Option(min=1, help="Runs at once.")] = 100,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="How long to wait for runs when told to stop.")
    ] = 50,
) -> None:
    """Work for the pool b3 until SIGTERM, then let runs end."""
    asyncio.run(_work(name, limit, drain_seconds))


if __name__ == "__main__":
    typer.run(main)
