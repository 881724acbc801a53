"""The flow ``mine``: datasets in, one manifest an arm and seed out."""

import itertools
from collections.abc import Iterable, Sequence

from prefect import flow
from prefect.futures import as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from b3_core import ahead, search
from b3_core.config import PipelineSpec
from b3_core.embed import Shard, Vectors
from b3_core.plan import Plan
from b3_core.ray_session import TASKS_AT_ONCE, RaySession, session
from b3_core.stage import Stage, missing
from b3_core.store import ArtifactStore
from flows import outcome
from tasks import reporting
from tasks.artifacts import publish_manifests
from tasks.events import MANIFESTS_PUBLISHED, announce
from tasks.stages import embed_shard, make_part, mine_dataset, read_pairs, run_stage
from tasks.turns import gpu_turn

_HEARD_ROWS = 200_000  # whose communities are found well within the 100 s that a run may be silent


@flow(
    name="mine", task_runner=ThreadPoolTaskRunner(max_workers=TASKS_AT_ONCE), persist_result=False
)
def mine(spec: PipelineSpec) -> outcome.Outcome:
    """Mine every arm and seed of CONFIG; return the URIs of the `manifests`.

    Work that the store holds is not done again, and Ray is started only if a shard is missing.
    Where a curriculum has a phase with `refresh`, this is the mining before it: those after it
    need the students so far, and `train` asks for them.
    """
    ahead.check_teacher(spec)
    store = ArtifactStore(spec.store.root)
    store.check_writable(single_writer=spec.store.single_writer)
    plan = plan_of(spec, store)
    mine_leg(plan, 0, spec, store)
    mined = outcome.mined(plan, store)
    announce(MANIFESTS_PUBLISHED, store, pipeline=spec.name, uris=mined["manifests"])
    return mined


@flow(
    name="mine-leg",
    task_runner=ThreadPoolTaskRunner(max_workers=TASKS_AT_ONCE),
    persist_result=False,
)
def mine_again(spec: PipelineSpec, leg: int) -> None:
    """Mine one leg of CONFIG's curricula with the students so far as teachers."""
    store = ArtifactStore(spec.store.root)
    mine_leg(plan_of(spec, store), leg, spec, store)


def mine_leg(plan: Plan, leg: int, spec: PipelineSpec, store: ArtifactStore) -> None:
    """Do what a leg of the plan lacks, and show its manifests on the run's page."""
    now = plan.legs[leg]
    with session(spec.compute) as ray:
        if todo := missing(now.vectors, store):
            with gpu_turn(ray.compute):
                groups = _by_teacher(todo)
                # One pool for all: as many processes as the largest group has work for.
                most = max(len(missing(_shards(group), store)) for group in groups)
                for group in groups:
                    _embed(group, ray, store, processes=min(TASKS_AT_ONCE, most))
                ray.free_actors()  # what follows may take hours, and needs none of their GPUs
        lacking = missing(itertools.chain(now.ranks, now.graphs, now.communities), store)
        in_parts = {stage.dataset for stage in lacking if stage.in_parts}
        whole = [stage for stage in lacking if stage.dataset not in in_parts]
        if ray.joins and len({stage.dataset for stage in whole}) > 1:
            _mine_apart(whole, ray, store)
        # One after another: each uses all cores, and igraph's random generator is global.
        for stage in itertools.chain(lacking, now.manifests.values()):
            make_stage(stage, ray, store)
    made = {key: store.get(manifest.address) for key, manifest in now.manifests.items()}
    publish_manifests(spec.name, made)


def _mine_apart(stages: Sequence[Stage], ray: RaySession, store: ArtifactStore) -> None:
    """Mine datasets side by side, each on a node of the cluster."""
    of = {name: [s for s in stages if s.dataset == name] for name in {s.dataset for s in stages}}
    with reporting.step("mine") as progress:
        futures = [
            mine_dataset.submit(parts, ray, store.root, dataset=name)
            for name, parts in sorted(of.items())
        ]
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            progress(done, len(futures))


def make_stage(stage: Stage, ray: RaySession, store: ArtifactStore) -> None:
    """Make a stage, if it is not there, here; and before it any parts of it, wave after wave.

    The parts of a wave are made side by side, on whatever cores of the session are free.
    """
    if store.find(stage.address) is not None:
        return
    for wave in stage.waves(store):
        parts = missing(wave, store)
        if len(parts) == 1:
            _make(parts[0], ray, store)
        elif parts:
            with reporting.step(parts[0].name) as progress:
                progress(len(wave) - len(parts), len(wave))
                futures = [make_part.submit(part, ray, store.root) for part in parts]
                for done, future in enumerate(as_completed(futures), len(wave) - len(parts) + 1):
                    future.result()
                    progress(done, len(wave))
    _make(stage, ray, store)


def _make(stage: Stage, ray: RaySession, store: ArtifactStore) -> None:
    """Make a stage here; elsewhere if this process could not say for minutes that it lives."""
    ref = getattr(stage, "ref", None)
    if stage.unheard and ref is not None and ref.rows > _HEARD_ROWS:
        make_part.submit(stage, ray, store.root).result()
    else:
        run_stage(stage, store)


def plan_of(spec: PipelineSpec, store: ArtifactStore) -> Plan:
    """Read the datasets, or find them read, and work out all that follows."""
    refs = [read_pairs(dataset, spec.evaluate, store) for dataset in spec.datasets]
    plan = Plan.of(spec, refs, store)
    ahead.check_windows(spec, {ref.spec.name: ref.rows for ref in refs})
    return plan


def _by_teacher(todo: Iterable[Vectors]) -> list[list[Vectors]]:
    """Keep apart what different models embed: a warm process has room for one, and keeps it."""
    groups: dict[str, list[Vectors]] = {}
    for vectors in todo:
        groups.setdefault(vectors.weights, []).append(vectors)
    return list(groups.values())


def _embed(
    todo: Sequence[Vectors], ray: RaySession, store: ArtifactStore, *, processes: int
) -> None:
    """Embed the shards that are missing, each its own task on a warm actor, then join them.

    Those of all datasets at once: else each would end with a few processes at work. A single one,
    or no more rows than that, are embedded here, unless that is to be done elsewhere: to start Ray
    takes longer. Not beside a GPU that nobody reserved, which Ray hides from its processes.
    """
    every = _shards(todo)
    shards = missing(every, store)
    few = len(shards) == 1 or _rows(shards) <= ray.compute.shard_rows
    if few and ray.on_this_cpu and not search.torch_sees_gpu():
        for shard in shards:
            run_stage(shard, store)
    elif shards:
        with reporting.step("embed") as progress:
            rows = _rows(every)
            done = rows - _rows(shards)
            progress(done, rows)
            futures = [
                embed_shard.submit(shard, ray, store.root, processes=processes) for shard in shards
            ]
            rows_of = {id(f): s.stop - s.start for f, s in zip(futures, shards, strict=True)}
            for future in as_completed(futures):
                future.result()  # a shard that failed for good ends the flow
                done += rows_of[id(future)]
                progress(done, rows)
    for vectors in todo:
        run_stage(vectors, store)


def _shards(todo: Iterable[Vectors]) -> list[Shard]:
    return [shard for vectors in todo for shard in vectors.shards]


def _rows(shards: Iterable[Shard]) -> int:
    return sum(shard.stop - shard.start for shard in shards)
