"""The only module that starts or joins Ray.

Ray is opened late: a session that finds all its work done never pays for it. ``RAY_ADDRESS``
joins a cluster; without it a private one is started and ended with the session.
"""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from b3_core.config import ComputeSpec
from b3_core.errors import B3Error, StoppedError
from b3_core.progress import Progress, silent
from b3_core.told import is_told, keep_handler, note_sigterm

# Explicit everywhere: Ray listens on all interfaces, and its default differs by how it is started.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
}


class ActorPool:
    """Warm actors of one class, leased one call at a time; safe for many threads."""

    def __init__(self, actors: list[Any]) -> None:
        self.size = len(actors)
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for actor in actors:
            self._free.put(actor)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Run a method on the next free actor and return its result."""
        import ray  # noqa: PLC0415 - a cached run never imports it

        actor = self._free.get()
        try:
            return _result(ray, getattr(actor, method).remote(*args, **kwargs))
        finally:
            self._free.put(actor)


class RaySession:
    """A context that opens Ray when it is first needed and closes what it opened.

    Parameters
    ----------
    compute
        Worker count and GPU share.
    """

    def __init__(self, compute: ComputeSpec) -> None:
        self.compute = compute
        self.started = False
        self._lock = threading.Lock()
        self._pools: dict[str, ActorPool] = {}
        self._ending = False
        # Ray's processes die with the thread that started them (Linux's parent-death signal), and
        # tasks come and go in threads of a pool: this one stays.
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="ray")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.started:
            import ray  # noqa: PLC0415

            self._pools.clear()
            self._keeper.submit(ray.shutdown).result()
        self._keeper.shutdown()

    @property
    def workers(self) -> int:
        """Actors of a pool: as asked, else one a core or GPU share of this machine or cluster."""
        if self.compute.workers is not None:
            return self.compute.workers
        if self.joins:
            import ray  # noqa: PLC0415

            there = ray.cluster_resources()
            share = self.compute.gpus_per_worker
            count = there.get("GPU", 0) / share if share else there.get("CPU", 0)
            return max(1, int(count))
        if self.compute.gpus_per_worker:
            import torch  # noqa: PLC0415

            return max(1, int(torch.cuda.device_count() / self.compute.gpus_per_worker))
        return os.cpu_count() or 1

    def side_by_side(self, jobs: int) -> int:
        """Return how many trainings of one thread each run at once here; 1 on a GPU or cluster."""
        alone = self.compute.train_workers > 1 or not self.on_this_cpu
        return 1 if alone else max(1, min(jobs, os.cpu_count() or 1))

    @property
    def on_this_cpu(self) -> bool:
        """Say whether workers would be processes of this machine without a GPU of their own."""
        return not (self.compute.gpus_per_worker or self.joins)

    @property
    def joins(self) -> bool:
        """Say whether a cluster is joined; else Ray is started here."""
        return bool(os.environ.get("RAY_ADDRESS"))

    def pool(self, cls: type, *args: Any, **kwargs: Any) -> ActorPool:
        """Return the pool of actors made by ``cls(*args, **kwargs)``, started if it is not there.

        The one before it ends: idle actors hold cores that the new ones wait for.
        """
        ray = self._open()
        key = repr((cls, args, sorted(kwargs.items())))
        with self._lock:
            if key not in self._pools:
                self._pools.clear()
                remote = ray.remote(
                    num_cpus=1,
                    num_gpus=self.compute.gpus_per_worker,
                    max_restarts=-1,
                    max_task_retries=0,  # Prefect retries, and shows it
                )(cls)
                self._pools[key] = ActorPool(
                    [remote.remote(*args, **kwargs) for _ in range(self.workers)]
                )
            return self._pools[key]

    def call(self, function: Callable[..., Any], *args: Any, cpus: int = 1) -> Any:
        """Run ``function(*args)`` as a Ray task on some cores, and a GPU share if workers have one.

        Ray sets the number of threads of a task's numerical libraries to its cores. Where no node
        has so many, it is as many as the largest has: Ray would wait for a larger one for ever.
        """
        ray = self._open()
        self._free_actors()
        most = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
        cpus = max(1, min(cpus, int(most)))
        remote = ray.remote(num_cpus=cpus, num_gpus=self.compute.gpus_per_worker, max_retries=0)
        return _result(ray, remote(function).remote(*args))

    def train(
        self,
        loop: Callable[..., None],
        configs: Sequence[Mapping[str, Any]],
        *,
        storage: str,
        progress: Progress = silent,
    ) -> None:
        """Run a training loop as a Ray Train job, or as several side by side.

        Every worker of a job calls ``loop(config, rank=, progress=, report=, stopping=)``. A loop
        that raises StoppedError because its process or node is to end is run again, elsewhere if
        need be. Where this process is told to end, loops are, and are waited for
        (``compute.grace_seconds``).

        Parameters
        ----------
        configs
            One a job.
        storage
            Folder or URI for Ray Train's own records; a bucket must exist.

        Raises
        ------
        B3Error
            What the loop raised on purpose; anything else as Ray reports it, after retries.
        """
        ray = self._open()
        keep_handler()
        self._free_actors()
        shown = _Together(progress, len(configs))
        boards = [ray.remote(num_cpus=0)(_Board).remote() for _ in configs]
        jobs = [
            _Job(board, loop, config, storage, shown.of(place))
            for place, (board, config) in enumerate(zip(boards, configs, strict=True))
        ]
        try:
            if len(jobs) == 1:  # in this thread, which Ray lets end a job at Ctrl-C
                self._train(jobs[0])
            else:
                _at_once(self._train, jobs)
        except (Exception, KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # Prefect raises one of its own at SIGTERM
            self._stop(ray, boards)
            raise

    def _train(self, job: "_Job") -> None:
        """Run a job until its loop has ended by itself, or this process is to end."""
        ray = self._open()
        from ray.train import FailureConfig, RunConfig, ScalingConfig  # noqa: PLC0415
        from ray.train.torch import TorchTrainer  # noqa: PLC0415

        while True:
            trainer = TorchTrainer(
                _train_worker,
                train_loop_config={
                    "loop": job.loop,
                    "config": dict(job.config),
                    "board": job.board,
                },
                torch_config=_noting_torch(),
                scaling_config=ScalingConfig(
                    num_workers=self.compute.train_workers,
                    use_gpu=self.compute.gpus_per_worker > 0,
                ),
                run_config=RunConfig(
                    storage_path=job.storage, failure_config=FailureConfig(max_failures=2)
                ),
            )
            with _polled(ray, job.board, job.progress):
                trainer.fit()
            error = ray.get(job.board.take_error.remote())
            if error is None:
                return
            if self._ending or not isinstance(error, StoppedError):
                raise error

    def _stop(self, ray: Any, boards: Sequence[Any]) -> None:
        """Have the loops end where they can go on from, and wait for them, but not for ever."""
        self._ending = True
        deadline = time.monotonic() + self.compute.grace_seconds
        with contextlib.suppress(Exception):  # a board that is gone has no loop
            ray.get([board.stop.remote() for board in boards], timeout=5)
            while time.monotonic() < deadline:
                if not any(ray.get([board.running.remote() for board in boards], timeout=5)):
                    return
                time.sleep(0.1)

    def _free_actors(self) -> None:
        """Let go of the cores that idle actors hold: what comes next may need them all."""
        with self._lock:
            self._pools.clear()

    def _open(self) -> Any:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import ray  # noqa: PLC0415

        with self._lock:
            if not self.started:
                own: dict[str, Any] = {"address": os.environ.get("RAY_ADDRESS")}
                if not self.joins:
                    cores = max(os.cpu_count() or 1, self.workers, self.compute.train_workers) + 1
                    own = {"address": "local", "num_cpus": cores, "include_dashboard": False}
                self._keeper.submit(
                    ray.init,
                    log_to_driver=False,
                    logging_level="ERROR",
                    configure_logging=False,
                    **own,
                ).result()
                self.started = True
        return ray


_shared: list[RaySession] = []


@contextlib.contextmanager
def session(compute: ComputeSpec) -> Iterator[RaySession]:
    """Open a session, or join the one that an enclosing flow of this process has open."""
    if _shared:
        yield _shared[-1]
        return
    with RaySession(compute) as opened:
        _shared.append(opened)
        try:
            yield opened
        finally:
            _shared.pop()


def _at_once(work: Callable[["_Job"], None], jobs: "Sequence[_Job]") -> None:
    """Do all jobs in threads; whoever interrupts that does not wait for them."""
    pool = ThreadPoolExecutor(len(jobs))
    try:
        running = [pool.submit(work, job) for job in jobs]
        wait(running)
        for each in running:
            each.result()
    finally:
        pool.shutdown(wait=False)


class _Together:
    """Tells how far several jobs are as one."""

    def __init__(self, progress: Progress, jobs: int) -> None:
        self._progress = progress
        self._state: list[tuple[int, int]] = [(0, 0)] * jobs
        self._lock = threading.Lock()

    def of(self, job: int) -> Progress:
        """Return what one job tells its progress to."""

        def told(done: int, total: int) -> None:
            with self._lock:
                self._state[job] = (done, total)
                known = [state for state in self._state if state[1]]
                # Jobs that have said nothing yet are taken to be as long as those that have.
                whole = sum(total for _, total in known) * len(self._state) // len(known)
                self._progress(sum(done for done, _ in known), whole)

        return told


@dataclass(frozen=True)
class _Job:
    """A training to run, and the actor that its workers and this process tell one another by."""

    board: Any
    loop: Callable[..., None]
    config: Mapping[str, Any]
    storage: str
    progress: Progress


class _Board:
    """An actor that remembers how far a remote job is, why it gave up, and whether it is to end."""

    def __init__(self) -> None:
        self._state = (0, 0)
        self._error: B3Error | None = None
        self._running = self._stopping = False

    def set(self, done: int, total: int) -> None:
        self._state = (done, total)

    def get(self) -> tuple[int, int]:
        return self._state

    def fail(self, error: B3Error) -> None:
        self._error = error

    def take_error(self) -> B3Error | None:
        error, self._error = self._error, None
        return error

    def run(self, running: bool) -> None:
        self._running = running

    def running(self) -> bool:
        return self._running

    def stop(self) -> None:
        self._stopping = True

    def stopping(self) -> bool:
        return self._stopping


def _result(ray: Any, reference: Any) -> Any:
    """Wait for a remote call; what it raised is raised here as itself, without Ray's wrapping."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


@contextlib.contextmanager
def _polled(ray: Any, board: Any, progress: Progress) -> Iterator[None]:
    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(0.5):
            with contextlib.suppress(Exception):  # progress is a courtesy, never a failure
                done, total = ray.get(board.get.remote(), timeout=5)
                if total:
                    progress(done, total)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=10)


def _train_worker(handed: dict[str, Any]) -> None:
    """Call the training loop inside a worker of Ray Train."""
    import ray.train  # noqa: PLC0415

    board = handed["board"]

    def progress(done: int, total: int) -> None:
        board.set.remote(done, total)

    context = ray.train.get_context()
    rank = context.get_world_rank()
    if rank == 0:
        ray.get(board.run.remote(True))
    try:
        with _heeding(ray, board) as stopping:
            handed["loop"](
                handed["config"],
                rank=rank,
                progress=progress,
                report=ray.train.report,
                stopping=stopping,
            )
    except B3Error as error:
        # Trying again would fail again. A lone worker ends its job here; in a group the others
        # wait for this one, so Ray must tear all of them down. But all stop together.
        ray.get(board.fail.remote(error))
        if context.get_world_size() > 1 and not isinstance(error, StoppedError):
            raise
    finally:
        if rank == 0:
            ray.get(board.run.remote(False))


@contextlib.contextmanager
def _heeding(ray: Any, board: Any) -> Iterator[Callable[[], bool]]:
    """Yield what says whether this worker is to end: its process, its node, or the whole run."""
    from ray.train.v2._internal.execution.context import get_train_context  # noqa: PLC0415

    told, ended = threading.Event(), threading.Event()

    def ask() -> None:
        while not (told.is_set() or ended.wait(0.5)):
            with contextlib.suppress(Exception):
                if ray.get(board.stopping.remote(), timeout=5):
                    told.set()

    # ray.train.get_preemption_info, but without its round trip that all workers must make together:
    # a step would wait for it.
    node = get_train_context().preemption_context
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield lambda: told.is_set() or is_told() or node.preemption_info is not None
    finally:
        ended.set()
        thread.join(timeout=10)


def _noting_torch() -> Any:
    """Return Ray Train's set-up of torch, with workers that note SIGTERM.

    A training runs in a thread of its worker; handlers of signals are set in the main one, where a
    backend's own set-up runs.
    """
    from ray.train.torch.config import TorchConfig, _TorchBackend  # noqa: PLC0415

    class Backend(_TorchBackend):  # type: ignore[misc]
        def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
            super().on_training_start(worker_group, backend_config)
            worker_group.execute(note_sigterm)

    class Config(TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type:
            return Backend

    return Config()
