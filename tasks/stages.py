"""Prefect tasks around the stages: names, retries, progress. No numerics.

A stage that is in the store already is not run at all: the flow asks the plan first. Prefect's
own result cache stays off, since the store is the proof and a second copy could disagree.
"""

from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from b3_core.config import DatasetSpec, EvalSpec
from b3_core.dataset_stage import Pairs, PairsRef
from b3_core.embed import Shard, ShardWorker
from b3_core.errors import InputError, RefusedError, StoppedError
from b3_core.learn import Student, evaluate_run, train_loop
from b3_core.manifest import verify_before_training
from b3_core.ray_session import RaySession, Warm
from b3_core.seams import run_part
from b3_core.stage import WHOLE_NODE, Stage, run_stages
from b3_core.store import RAY, ArtifactStore
from b3_core.watch import Watched
from tasks import events, reporting

RETRY_SECONDS = [5, 15, 45]


def may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Tell whether trying again can help: not where the input is wrong, or a server refuses.

    Nor where the run ends.
    """
    error = state.result(raise_on_failure=False)
    return not isinstance(error, InputError | RefusedError | StoppedError)


_TRIED_AGAIN: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "retries": len(RETRY_SECONDS),
    "retry_delay_seconds": RETRY_SECONDS,
    "retry_condition_fn": may_pass,
    "retry_jitter_factor": 0.5,
}


@task(name="read-pairs", task_run_name="read {dataset.name}", cache_policy=NO_CACHE)
def read_pairs(dataset: DatasetSpec, evaluate: EvalSpec, store: ArtifactStore) -> PairsRef:
    """Read, check and store one dataset."""
    with reporting.step("pairs"):
        return PairsRef.of(dataset, Pairs.of(dataset, evaluate).run(store))


@task(name="stage", task_run_name="{stage.title}", cache_policy=NO_CACHE)
def run_stage(stage: Stage, store: ArtifactStore) -> None:
    """Make one stage's artifact in this process."""
    with reporting.step(stage.name) as progress:
        stage.run(store, progress)


@task(
    name="part",
    task_run_name="{part.title}",
    **_TRIED_AGAIN,
)
def make_part(part: Stage, session: RaySession, root: str) -> None:
    """Make one part of a stage on cores of whichever node has them."""
    session.call(run_part, root, part, cpus=part.cores, gpu=False)


@task(
    name="mine-dataset",
    task_run_name="mine {dataset}",
    cache_policy=NO_CACHE,
    retries=1,
    retry_condition_fn=may_pass,
)
def mine_dataset(stages: list[Stage], session: RaySession, root: str, *, dataset: str) -> None:
    """Run a dataset's stages in order on a node of the cluster, all of its cores for them."""
    session.call(run_stages, root, stages, cpus=WHOLE_NODE)


@task(
    name="embed-shard",
    task_run_name="embed {shard.dataset} {shard.start}-{shard.stop}",
    **_TRIED_AGAIN,
)
def embed_shard(shard: Shard, session: RaySession, root: str, *, processes: int) -> None:
    """Have a warm process embed one shard; after a refresh many students take turns in it.

    ``processes``: how many such processes there are at most, each with the teacher in memory.
    """
    session.pool(ShardWorker, root, most=processes).call("run", shard)


@task(name="verify", cache_policy=NO_CACHE)
def verify_manifests(students: list[Student], store: ArtifactStore) -> None:
    """Refuse to train on a manifest that is not sound, here and once: not in every worker."""
    with reporting.step("verify") as progress:
        addresses = dict.fromkeys(student.manifest.address for student in students)
        verify_before_training([store.get(address) for address in addresses], progress)


@task(name="train", cache_policy=NO_CACHE)
def train_students(students: list[Student], session: RaySession, store: ArtifactStore) -> None:
    """Train students in as many jobs as there is room for, one after another in each."""
    slim = all(student.one_thread for student in students)
    jobs = session.side_by_side(len(students), slim=slim)
    with reporting.step("train") as progress:
        session.train(
            train_loop,
            [{"root": store.root, "students": students[job::jobs]} for job in range(jobs)],
            storage=store.uri(RAY),
            gpu=not slim,
            progress=progress,
        )


@task(
    name="evaluate-student",
    task_run_name="evaluate {arm} seed {seed}",
    cache_policy=NO_CACHE,
    retries=1,
    retry_condition_fn=may_pass,
)
def evaluate_student(
    evaluation: Stage,
    session: RaySession,
    root: str,
    *,
    arm: str,
    seed: int,
    one_thread: bool = False,
) -> None:
    """Evaluate one student on a Ray worker; on a warm one where one core or a GPU is enough."""
    if one_thread and not session.joins:
        session.pool(Warm, gpu=False).call("run", run_stages, root, [evaluation])
    elif session.compute.gpus_per_worker:
        session.pool(Warm).call("run", run_stages, root, [evaluation])
    else:
        # Two cores each: a laptop then holds one model and one corpus in memory, not one a core.
        session.call(evaluate_run, root, evaluation, cpus=2)


@task(
    name="look-at",
    task_run_name="look at {dataset.name}",
    **_TRIED_AGAIN,
)
def look_at(dataset: DatasetSpec, watched: Watched, *, now: float, patience: float) -> bool:
    """Say that a dataset changed, if it did, and remember that it was said."""
    change = watched.look(dataset, now=now, patience=patience)
    if change is None:
        return False
    events.emit(
        events.DATASET_CHANGED,
        resource=f"dataset.{watched.pipeline}.{dataset.name}",
        pipeline=watched.pipeline,
        payload={"dataset": dataset.name, "uri": dataset.uri},
    )
    watched.remember(change, now=now)
    return True
