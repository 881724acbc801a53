"""Training loops as jobs of Ray: several at once, told to end, started again elsewhere.

Trainings (here)         -> a job a config -> a group of Ray Train, or a warm process: the loop
whoever is told to end   -> stopping()     -> the loop keeps its step, and raises StoppedError
                         -> the job is run again, unless this process is to end itself
a job that failed        -> the others are told to end, and then it is said why
"""

import contextlib
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

from b3_core.calls import Calls
from b3_core.config import ComputeSpec
from b3_core.errors import B3Error, StoppedError
from b3_core.progress import Progress
from b3_core.told import is_told, note_sigterm, noting_sigterm

_MAX_FAILURES = 2  # of a job's processes, before it is given up
_GIVE_UP_SECONDS = 10  # for threads that have nothing more to wait for


class Loop(Protocol):
    """What every worker of a job calls."""

    def __call__(
        self,
        config: Any,
        *,
        rank: int,
        progress: Progress,
        report: Callable[[dict[str, Any]], None],
        stopping: Callable[[], bool],
    ) -> None:
        """Train what the config says, as worker ``rank``; end early once ``stopping`` says so."""


class Processes(Protocol):
    """Warm processes that call functions, one at a time each."""

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the next free one; one that died is started anew."""


class Trainings:
    """Runs training loops, side by side.

    Parameters
    ----------
    ray
        The module, opened.
    compute
        Workers of a job, and how long to wait for loops that are to end.
    storage
        Folder or URI for Ray Train's own records.
    calls
        Of the session; Ctrl-C ends them.
    processes
        To run each job in one of, with ``run(function, argument)``. Else Ray Train starts a group
        for each: eight processes beside the workers, which took two cores 20 s, as long as a small
        student's whole training.
    """

    def __init__(
        self,
        ray: Any,
        compute: ComputeSpec,
        storage: str,
        *,
        calls: Calls,
        processes: Processes | None = None,
    ) -> None:
        self._ray, self._compute, self._storage = ray, compute, storage
        self._calls, self._processes = calls, processes
        self._ending = False

    def run(self, loop: Loop, configs: Sequence[Mapping[str, Any]], progress: Progress) -> None:
        """Run a job a config until all have ended.

        Where one fails, or this process is told to end (an exception that is no error: Prefect
        raises one at SIGTERM), the other loops are told to end, and waited for: each keeps its
        step. At Ctrl-C nothing is.

        Raises
        ------
        B3Error
            What a loop raised on purpose; anything else as Ray reports it, after retries.
        """
        shown = _Together(progress, len(configs))
        board = self._on_this_node(_Board)
        jobs = [
            _Job(board.remote(), loop, config, shown.of(place))
            for place, config in enumerate(configs)
        ]
        pool = ThreadPoolExecutor(len(jobs))
        # None in this thread: Ray Train would take Ctrl-C from it, and exit with 1.
        running = [pool.submit(self._train, job) for job in jobs]
        try:
            ended, others = wait(running, return_when=FIRST_EXCEPTION)
            failed = [why for each in running if each in ended and (why := each.exception())]
            if others:  # nobody is about to kill them: they have the time that it takes
                self._stop(jobs, running, math.inf)
            if failed:
                raise failed[0]
        except Exception:
            raise
        except (KeyboardInterrupt, SystemExit):
            self._calls.end(_GIVE_UP_SECONDS)
            if self._processes is not None:  # a group ends with Ray
                wait(running, timeout=_GIVE_UP_SECONDS)
            raise
        except BaseException:
            self._stop(jobs, running, self._compute.grace_seconds)
            raise
        finally:
            pool.shutdown(wait=False)

    def _on_this_node(self, cls: type) -> Any:
        """Make an actor class whose actors live on this process's node, and come back if killed.

        Any other node may die while this one lives, and with it what a training is waiting for.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

        here = self._ray.get_runtime_context().get_node_id()
        return self._ray.remote(
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=True),
        )(cls)

    def _train(self, job: "_Job") -> None:
        """Run a job until its loop has ended by itself, or this process is to end."""
        while True:
            failed: Exception | None = None
            said: B3Error | None = None
            with _polled(self._ray, self._calls, job):
                try:
                    said = self._run_once(job)
                except StoppedError:  # by whoever leaves the session: Ray is asked no more
                    raise
                except Exception as error:  # noqa: BLE001 - raised below, unless a worker said why
                    failed = error
            # What a worker said before it ended is why, and is one line.
            said = said or self._ray.get(job.board.take_error.remote())
            if isinstance(said, StoppedError) and not self._ending:
                continue
            if (why := said or failed) is None:
                return
            raise why

    def _run_once(self, job: "_Job") -> B3Error | None:
        """Run a job, tries after deaths of its processes included; return what a lone one said."""
        handed = {"loop": job.loop, "config": dict(job.config), "board": job.board}
        if self._processes is None:
            self._run_in_group(handed)
            return None
        for failures in range(1 + _MAX_FAILURES):
            try:
                said: B3Error | None = self._processes.call("run", _train_alone, handed)
            except self._ray.exceptions.RayActorError as error:  # Ray starts the process anew
                if self._ending:
                    raise
                if failures == _MAX_FAILURES:
                    raise B3Error(
                        f"a training's process died {1 + failures} times",
                        remedy="look whether this machine's memory ran out (compute.workers: 1 "
                        "trains one student at a time); the same command goes on",
                    ) from error
            else:
                return said
        return None

    def _run_in_group(self, handed: dict[str, Any]) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig  # noqa: PLC0415
        from ray.train.torch import TorchTrainer  # noqa: PLC0415

        share = self._compute.gpus_per_worker
        TorchTrainer(
            _train_worker,
            train_loop_config=handed,
            torch_config=_noting_torch(alone=self._compute.train_workers == 1),
            scaling_config=ScalingConfig(
                num_workers=self._compute.train_workers,
                use_gpu=share > 0,
                resources_per_worker={"GPU": share} if share else None,
            ),
            run_config=RunConfig(
                name=uuid.uuid4().hex,  # Ray's own are seconds: jobs side by side would share one
                storage_path=self._storage,
                failure_config=FailureConfig(max_failures=_MAX_FAILURES),
            ),
        ).fit()

    def _stop(
        self, jobs: Sequence["_Job"], running: Sequence[Future[None]], seconds: float
    ) -> None:
        """Have the loops end where they can go on from, and wait so long for them at most."""
        self._ending = True
        boards = [job.board for job in jobs]
        deadline = time.monotonic() + seconds
        while wait(running, timeout=0.1).not_done and time.monotonic() < deadline:
            with contextlib.suppress(Exception):  # a board that was killed comes back
                # Each time: it has forgotten it.
                self._ray.get([board.stop.remote() for board in boards], timeout=5)
                if not any(self._ray.get([board.running.remote() for board in boards], timeout=5)):
                    break
        wait(running, timeout=_GIVE_UP_SECONDS)  # for what is around the loops


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
    loop: Loop
    config: Mapping[str, Any]
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
        if running:  # of a try before this one
            self._error = None

    def running(self) -> bool:
        return self._running

    def stop(self) -> None:
        self._stopping = True

    def stopping(self) -> bool:
        return self._stopping


@contextlib.contextmanager
def _polled(ray: Any, calls: Calls, job: _Job) -> Iterator[None]:
    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(0.5):
            # Progress is a courtesy, never a failure.
            with contextlib.suppress(Exception), calls.one():
                done, total = ray.get(job.board.get.remote(), timeout=5)
                if total:
                    job.progress(done, total)

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
    from ray.train.v2._internal.execution.context import get_train_context  # noqa: PLC0415

    # ray.train.get_preemption_info, but without its round trip that all workers must make together:
    # a step would wait for it.
    node = get_train_context().preemption_context
    context = ray.train.get_context()
    _work(
        handed,
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        report=ray.train.report,
        leaving=lambda: node.preemption_info is not None,
    )


def _train_alone(handed: dict[str, Any]) -> B3Error | None:
    """Call the training loop inside a warm process, which ends if it is told to."""
    try:
        with noting_sigterm():
            return _work(handed, rank=0, size=1, report=lambda _: None, leaving=lambda: False)
    finally:
        if is_told():
            os._exit(0)  # Ray starts another in its place


def _work(
    handed: dict[str, Any],
    *,
    rank: int,
    size: int,
    report: Callable[[dict[str, Any]], None],
    leaving: Callable[[], bool],
) -> B3Error | None:
    """Call the training loop as worker ``rank``, and return what it raised on purpose.

    ``leaving`` says whether its node is to end.
    """
    import ray  # noqa: PLC0415

    board = handed["board"]

    def progress(done: int, total: int) -> None:
        board.set.remote(done, total)

    if rank == 0:
        ray.get(board.run.remote(True))
    try:
        with _heeding(ray, board, leaving) as stopping:
            handed["loop"](
                handed["config"],
                rank=rank,
                progress=progress,
                report=report,
                stopping=stopping,
            )
    except B3Error as error:
        # Trying again would fail again. A lone worker ends its job here; in a group the others
        # wait for this one, so Ray must tear all of them down. But all stop together.
        ray.get(board.fail.remote(error))
        if size > 1 and not isinstance(error, StoppedError):
            raise
        return error
    finally:
        if rank == 0:
            ray.get(board.run.remote(False))
    return None


@contextlib.contextmanager
def _heeding(ray: Any, board: Any, leaving: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Yield what says whether this worker is to end: its process, its node, or the whole run."""
    told, ended = threading.Event(), threading.Event()

    def ask() -> None:
        while not (told.is_set() or ended.wait(0.5)):
            with contextlib.suppress(Exception):
                if ray.get(board.stopping.remote(), timeout=5):
                    told.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield lambda: told.is_set() or is_told() or leaving()
    finally:
        ended.set()
        thread.join(timeout=10)


def _noting_torch(*, alone: bool) -> Any:
    """Return Ray Train's set-up of torch, with workers that note SIGTERM.

    A training runs in a thread of its worker; handlers of signals are set in the main one, where a
    backend's own set-up runs.

    Parameters
    ----------
    alone
        Whether there is one worker, which joins no process group: in a group of one the model is
        wrapped all the same, and gradients are copied for nobody. A static student took a fifth
        longer.
    """
    from ray.train.backend import Backend  # noqa: PLC0415
    from ray.train.torch.config import TorchConfig, _TorchBackend  # noqa: PLC0415

    class Noting(Backend if alone else _TorchBackend):  # type: ignore[misc]
        def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
            super().on_training_start(worker_group, backend_config)
            worker_group.execute(note_sigterm)

    class Config(TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type:
            return Noting

    return Config()
