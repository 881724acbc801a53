"""The only module that starts or joins Ray; its training jobs are in :mod:`b3_core.ray_train`.

Ray is opened late: a session that finds all its work done never pays for it. ``RAY_ADDRESS``
joins a cluster; without it a private one is started and ended with the session. Whatever is still
being called when a session is left ends before Ray does (:mod:`b3_core.calls`).
"""

import contextlib
import math
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from b3_core.calls import Calls
from b3_core.config import ComputeSpec
from b3_core.errors import InputError
from b3_core.machine import cores
from b3_core.progress import Progress, silent
from b3_core.ray_train import Loop, Trainings
from b3_core.told import keeping_handler

# Explicit everywhere: Ray listens on all interfaces, and its default differs by how it is started.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_AUTH_MODE": "token",
    # Who reserves no GPU sees none: otherwise a process a core would load its model on the first.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    # Who asks it for something after its end is told so, and does not start another.
    "RAY_ENABLE_AUTO_CONNECT": "0",
}

#: Tasks that a flow keeps going at a time, on however large a cluster: each is a thread of the flow
#: and a run that Prefect's server is told of.
TASKS_AT_ONCE = 32

_AGAIN_SECONDS = 60
_END_SECONDS = (
    30  # for what is called to give up: who waits does at once, to start Ray takes longer
)
_NO_GPU = {"gpus_per_worker": 0.0}


class Warm:
    """The body of an actor that calls any function: what one imported, the next finds there."""

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return ``function(*args)``."""
        return function(*args)


class ActorPool:
    """Warm actors of one class, leased one call at a time; safe for many threads.

    One is leased when Ray has found a place for it: there may be fewer places than actors. Whoever
    sees one die waits until it is there again, or the next call would fail at once.
    """

    def __init__(self, actors: list[Any], calls: Calls | None = None) -> None:
        self.size = len(actors)
        self._actors = actors
        self._calls = calls or Calls()
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        pool = weakref.ref(self)

        def ready(number: int | None) -> None:
            if (of := pool()) is not None:  # a pool that is gone has let go of its actors
                of._free.put(None if number is None else of._actors[number])

        for number, actor in enumerate(actors):
            # An actor that failed is leased too: the call says why.
            placed = actor.__ray_ready__.remote().future()
            placed.add_done_callback(lambda _, number=number: ready(number))
        # Whoever waits for one is woken at the end, and wakes the next.
        self._calls.ending.add_done_callback(lambda _: ready(None))

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Run a method on the next free actor and return its result.

        Raises
        ------
        StoppedError
            The session of these actors is left meanwhile, or was.
        """
        import ray  # noqa: PLC0415 - a cached run never imports it

        with self._calls.one():
            actor = self._free.get()
            try:
                self._calls.check()
                return _result(ray, getattr(actor, method).remote(*args, **kwargs), self._calls)
            except ray.exceptions.RayActorError:
                _await_again(ray, actor, self._calls)
                raise
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
        self._calls = Calls()
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
        self.end()
        with self._lock:  # of whoever is starting Ray
            if self.started:
                import ray  # noqa: PLC0415

                self._pools.clear()
                self._keeper.submit(ray.shutdown).result()
        self._keeper.shutdown()

    def end(self) -> None:
        """End all that is called through this session, for good; what else is asked of it too."""
        self._calls.end(_END_SECONDS)

    @property
    def workers(self) -> int:
        """Actors of a pool: as asked, else one a core or GPU share of this machine or cluster."""
        return self.places if self.compute.workers is None else self.compute.workers

    @property
    def places(self) -> int:
        """Actors that this machine or cluster has cores or GPU shares for, one at least."""
        if self.joins:
            import ray  # noqa: PLC0415

            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            return max(1, sum(self.fitting(n.get("CPU", 0), n.get("GPU", 0)) for n in nodes))
        if self.compute.gpus_per_worker:
            import torch  # noqa: PLC0415

            return max(1, self.fitting(math.inf, torch.cuda.device_count()))
        return cores()

    def fitting(self, cpus: float, gpus: float) -> int:
        """Count the actors that fit on a node: a core each, and a part of a GPU, or whole ones."""
        share = self.compute.gpus_per_worker
        if not share:
            return int(cpus)
        most = gpus // share if share >= 1 else int(gpus) * math.floor(1 / share + 1e-9)
        return int(min(cpus, most))

    def side_by_side(self, jobs: int, *, slim: bool) -> int:
        """Return how many trainings run at once: ``trainings_at_once``, here or on the cluster."""
        if slim and self.joins:
            return 1
        places = cores()
        if self.compute.gpus_per_worker and not slim:
            if self.joins:
                self._open()
            places = self.places
        return trainings_at_once(self.compute, jobs, slim=slim, places=places)

    @property
    def on_this_cpu(self) -> bool:
        """Say whether workers would be processes of this machine without a GPU of their own."""
        return not (self.compute.gpus_per_worker or self.joins)

    @property
    def joins(self) -> bool:
        """Say whether a cluster is joined; else Ray is started here."""
        return bool(os.environ.get("RAY_ADDRESS"))

    def pool(
        self, cls: type, *args: Any, gpu: bool = True, most: int | None = None, **kwargs: Any
    ) -> ActorPool:
        """Return the pool of actors made by ``cls(*args, **kwargs)``, started if it is not there.

        The one before it ends: idle actors hold cores that the new ones wait for.

        ``gpu``: whether they have use for the GPU share that workers may have. ``most``: how many
        there is work for; a pool that is there already stays as it is.

        Raises
        ------
        InputError
            They want a GPU, and this machine has none.
        StoppedError
            The session is left meanwhile, or was.
        """
        session = self if gpu else RaySession(self.compute.model_copy(update=_NO_GPU))
        key = repr((cls, args, gpu, sorted(kwargs.items())))
        with self._calls.one():
            ray = self._open()
            if session.compute.gpus_per_worker:
                session.check_gpus(_gpus(ray))
            with self._lock:
                if key not in self._pools:
                    self._pools.clear()
                    remote = ray.remote(
                        num_cpus=1,
                        num_gpus=session.compute.gpus_per_worker,
                        max_restarts=-1,
                        max_task_retries=0,  # Prefect retries, and shows it
                    )(cls)
                    size = session.workers if most is None else min(session.workers, most)
                    actors = [remote.remote(*args, **kwargs) for _ in range(size)]
                    self._pools[key] = ActorPool(actors, self._calls)
                return self._pools[key]

    def call(
        self, function: Callable[..., Any], *args: Any, cpus: int = 1, gpu: bool = True
    ) -> Any:
        """Run ``function(*args)`` as a Ray task on some cores, and a GPU share if workers have one.

        ``gpu``: whether it has use for one.

        Ray sets the number of threads of a task's numerical libraries to its cores. Where no node
        has so many, it is as many as the largest has: Ray would wait for a larger one for ever.

        Raises
        ------
        InputError
            It wants a GPU, and this machine has none.
        StoppedError
            The session is left meanwhile, or was.
        """
        with self._calls.one():
            ray = self._open()
            self.free_actors()
            share = self.compute.gpus_per_worker if gpu else 0
            if share:
                self.check_gpus(_gpus(ray))
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            fit = [node for node in nodes if node.get("GPU", 0) >= share] or nodes
            cpus = max(1, min(cpus, int(max(node.get("CPU", 0) for node in fit))))
            remote = ray.remote(num_cpus=cpus, num_gpus=share, max_retries=0)
            return _result(ray, remote(function).remote(*args), self._calls)

    def train(
        self,
        loop: Loop,
        configs: Sequence[Mapping[str, Any]],
        *,
        storage: str,
        gpu: bool = True,
        progress: Progress = silent,
    ) -> None:
        """Run a training loop as a job, or as several side by side.

        A job is a group of Ray Train; or, where it has no use for a GPU, is to be one worker, and
        no cluster is joined, a process of ``pool(Warm, gpu=False)``. Every worker of a job calls
        ``loop(config, rank=, progress=, report=, stopping=)``.

        Parameters
        ----------
        configs
            One a job.
        storage
            Folder or URI for Ray Train's own records; a bucket must exist.
        gpu
            Whether it has use for the GPUs that workers may have.

        Raises
        ------
        InputError
            Its workers want more GPUs than this machine has, or would share one.
        B3Error
            What the loop raised on purpose; anything else as Ray reports it, after retries.
        """
        ray = self._open()
        compute = self.compute
        if gpu:
            self.check_trainers(_gpus(ray))
        else:
            compute = compute.model_copy(update=_NO_GPU)
        processes = None
        if gpu or self.joins or compute.train_workers > 1:
            self.free_actors()
        else:
            processes = self.pool(Warm, gpu=False)
        trainings = Trainings(ray, compute, storage, calls=self._calls, processes=processes)
        trainings.run(loop, configs, progress)

    def free_actors(self) -> None:
        """Let go of the cores that idle actors hold: what comes next may need them all."""
        with self._lock:
            self._pools.clear()

    def check_gpus(self, gpus: float, workers: int = 1) -> None:
        """Refuse what Ray would wait for for ever; to a cluster that is joined nodes may come.

        Parameters
        ----------
        gpus
            Those of this machine.
        workers
            How many must run at once.

        Raises
        ------
        InputError
            They do not fit.
        """
        share = self.compute.gpus_per_worker
        if not share or self.joins:
            return
        if self.fitting(math.inf, gpus) < workers:
            raise InputError(
                f"{workers} x compute.gpus_per_worker = {share:g} do not fit this machine's GPUs: "
                f"{gpus:g}",
                remedy="lower one of them (gpus_per_worker: 0 is the CPU), or join a cluster with "
                "RAY_ADDRESS",
            )

    def check_trainers(self, gpus: float) -> None:
        """Refuse trainers of one training that do not fit, or would meet on one GPU.

        Raises
        ------
        InputError
            NCCL joins no two processes of a GPU, and Ray puts shares that fit onto the same one;
            or they do not fit.
        """
        share, trainers = self.compute.gpus_per_worker, self.compute.train_workers
        if trainers > 1 and 0 < share < 1:
            raise InputError(
                f"compute.train_workers: {trainers} with compute.gpus_per_worker: {share:g} would "
                "have trainers share a GPU",
                expected="a whole GPU for each of several trainers: NCCL joins no others",
                remedy="set compute.gpus_per_worker: 1 (0 is the CPU), or compute.train_workers: 1",
            )
        self.check_gpus(gpus, trainers)

    def _open(self) -> Any:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import ray  # noqa: PLC0415

        with self._lock:
            if not self.started:
                own: dict[str, Any] = {"address": os.environ.get("RAY_ADDRESS")}
                if not self.joins:
                    most = max(cores(), self.workers, self.compute.train_workers) + 1
                    own = {"address": "local", "num_cpus": most, "include_dashboard": False}
                self.started = True  # where Ctrl-C comes now too: it will be there all the same
                try:
                    with keeping_handler():
                        self._keeper.submit(
                            ray.init,
                            log_to_driver=False,
                            logging_level="ERROR",
                            configure_logging=False,
                            **own,
                        ).result()
                except Exception:
                    self.started = False
                    raise
        return ray


_shared: list[RaySession] = []


def trainings_at_once(compute: ComputeSpec, jobs: int, *, slim: bool, places: int) -> int:
    """Say how many of ``jobs`` trainings run at once.

    Small students (``slim``) as many as there are cores, on one machine; others as many as there
    are GPUs, or shares of one, for all of their workers: an H200 was one eighth busy with a student
    of 22 million parameters. On the CPU others take all cores, one after another.

    Parameters
    ----------
    places
        Cores of the machine where they are small; else workers that the GPUs have room for.
    """
    if slim and compute.train_workers > 1:
        return 1
    if not slim:
        if not compute.gpus_per_worker:
            return 1
        places //= compute.train_workers
    return max(1, min(jobs, places, compute.workers or places))


@contextlib.contextmanager
def session(compute: ComputeSpec) -> Iterator[RaySession]:
    """Open a session, or join the one that an enclosing flow of this process has open.

    An error that leaves it ends what is called through it, joined or not: the enclosing flow ends
    of it too, and the threads of this one are waited for before.
    """
    if _shared:
        try:
            yield _shared[-1]
        except BaseException:
            _shared[-1].end()
            raise
        return
    with RaySession(compute) as opened:
        _shared.append(opened)
        try:
            yield opened
        finally:
            _shared.pop()


def _await_again(ray: Any, actor: Any, calls: Calls) -> None:
    """Wait for an actor that Ray starts anew, but not for ever."""
    deadline = time.monotonic() + _AGAIN_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(ray.exceptions.RayActorError):
            there = actor.__ray_ready__.remote()
            if calls.wait_for(there.future(), _AGAIN_SECONDS):
                ray.get(there)
                return
        time.sleep(0.2)


def _gpus(ray: Any) -> float:
    return float(ray.cluster_resources().get("GPU", 0))


def _result(ray: Any, reference: Any, calls: Calls) -> Any:
    """Wait for a remote call; what it raised is raised here as itself, without Ray's wrapping."""
    calls.wait_for(reference.future())  # ray.get would end this thread with Ray, by SystemExit
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
