"""A forecast from a CONFIG: its plan, a sample of its data, probes, records of its store."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq

from b3_core import ahead, packaged
from b3_core.config import PipelineSpec
from b3_core.dataset_stage import Pairs, PairsRef
from b3_core.errors import InputError
from b3_core.forecast.jobs import Job, Rows, jobs_of, key_of
from b3_core.forecast.machine import Machine, gpus_here
from b3_core.forecast.measure import Measured, Prober, Spread
from b3_core.forecast.past import timings_of
from b3_core.forecast.predict import Basis, Forecast, predict
from b3_core.forecast.rates import Rate, Timing, fit_all
from b3_core.forecast.sample import Sample, draw, rows_of
from b3_core.forecast.sizes import Widths, text_bytes
from b3_core.machine import cores
from b3_core.plan import Plan
from b3_core.progress import Progress, silent
from b3_core.ranking import Ranks
from b3_core.ray_session import RaySession
from b3_core.stage import Past
from b3_core.store import ArtifactStore

#: Rows of a sample: ranks, graph and communities are timed at a quarter, half and all of them.
SAMPLE_ROWS = 16_384
_RESULTS = Rate({"once": 1.0}, source="assumed")


@dataclass(frozen=True)
class Settings:
    """How a forecast is made, and for which machine."""

    machine: Machine
    seconds: float = 8.0
    """Of work that each probe times, about."""
    records: bool = True
    """Whether records of the store are taken for timings where there are any."""


def forecast(spec: PipelineSpec, settings: Settings, progress: Progress = silent) -> Forecast:
    """Predict what every stage of a CONFIG takes, of those that its store does not hold.

    Nothing is written into the store.

    Raises
    ------
    InputError
        A dataset cannot be read or sampled, or is too small for its batches.
    B3Error
        A probe failed.
    """
    store = ArtifactStore(spec.store.root)
    gpus = gpus_here() if spec.compute.gpus_per_worker else 0
    machine = settings.machine
    # On a machine without a GPU such a CONFIG is refused: where none is said, this one's are meant.
    machine = replace(machine, gpus=machine.gpus or gpus)
    totals = {each.name: rows_of(each, spec, store) for each in spec.datasets}
    ahead.check_windows(spec, {name: each.train for name, each in totals.items()})
    plan = Plan.in_store(spec, store)
    with tempfile.TemporaryDirectory(prefix="b3-plan-") as folder:
        # More than one batch must be left of it when it is cut.
        batch = max(spec.arm(name)[1].batch_size for name in spec.arm_names)
        sample = draw(spec, Path(folder, "sample"), rows=max(SAMPLE_ROWS, 6 * batch))
        if plan is None:
            like = _planned(sample, spec, Path(folder, "structure"))
            jobs = [*_pairs(spec, totals, None), *jobs_of(like, spec, totals, None)]
            timings: list[Timing] = []
        else:
            like = plan
            jobs = [*_pairs(spec, totals, store), *jobs_of(plan, spec, totals, store)]
            works = {job.key: (job.kind, job.work) for job in jobs if not job.done}
            timings = timings_of(plan, works, Past(store)) if settings.records else []
        known = {each.key for each in timings}
        unknown = [job for job in jobs if not job.done and job.key not in known]
        students = sum(job.kind == "student" and not job.done for job in jobs)
        here = Spread.of(spec, cpus=cores(), students=students, gpus=gpus)
        found = Measured(timings=list(timings))
        if any(job.kind != "results" for job in unknown):
            prober = Prober(sample, Path(folder, "probes"), totals, here, settings.seconds)
            prober.folder.mkdir()
            probed = prober.measure(unknown, progress)
            fresh = [each for each in probed.timings if each.key not in known]
            found = Measured([*timings, *fresh], probed.starts, probed.embedded, probed.dim)
        widths = _widths(like, sample, found, store)
    basis = Basis(
        rates={**fit_all(found.timings), "results": _RESULTS},
        kinds={**{each.key: each.kind for each in found.timings}, "results": "results"},
        totals=totals,
        widths=widths,
        spread=Spread.of(spec, cpus=machine.cpus, students=students, gpus=machine.gpus),
        machine=machine,
        starts=found.starts,
    )
    made = predict(
        jobs, basis, list(_assumptions(spec, sample, found, sampled=plan is None, jobs=jobs))
    )
    return replace(made, refused=_refused(spec, jobs, machine.gpus))


def _refused(spec: PipelineSpec, jobs: Sequence[Job], gpus: int) -> list[str]:
    """Say what a session would refuse on a machine with so many GPUs; to a cluster nodes may come.

    Only what is still to be made asks for GPUs, and small students never do.
    """
    session = RaySession(spec.compute)
    todo = {job.kind for job in jobs if not job.done}
    if spec.train.student in packaged.SMALL:
        todo -= {"student", "evaluation"}
    checks: list[Callable[[float], None]] = []
    if todo & {"shards", "evaluation"}:
        checks.append(session.check_gpus)
    if "student" in todo:
        checks.append(session.check_trainers)
    said = []
    for check in checks:
        try:
            check(gpus)
        except InputError as error:
            said.append(str(error))
    return list(dict.fromkeys(said))


def _planned(sample: Sample, spec: PipelineSpec, folder: Path) -> Plan:
    """Plan the sample as CONFIG has it, with all of its seeds: the same stages, of fewer rows."""
    cut = sample.cut(folder, 1 << 40).model_copy(update={"seeds": spec.seeds})
    store = ArtifactStore(cut.store.root)
    refs = [
        PairsRef.of(dataset, Pairs.of(dataset, cut.evaluate).run(store)) for dataset in cut.datasets
    ]
    return Plan.of(cut, refs, store)


def _pairs(
    spec: PipelineSpec, totals: Mapping[str, Rows], store: ArtifactStore | None
) -> Iterator[Job]:
    for dataset in spec.datasets:
        stage = Pairs.of(dataset, spec.evaluate)
        rows = totals[dataset.name]
        work = {"once": 1.0, "rows": float(rows.train + rows.heldout)}
        done = store is not None and store.find(stage.address) is not None
        yield Job("pairs", key_of(stage), dataset.name, work, done)


def _widths(plan: Plan, sample: Sample, found: Measured, store: ArtifactStore) -> Widths:
    ranks = [each for each in plan.legs[0].ranks if isinstance(each, Ranks)]
    dim = found.dim
    for vectors in plan.legs[0].vectors:
        made = store.find(vectors.address)
        dim = dim or (int(made.counts["width"]) if made else 0)
    sizes = {}
    for dataset in sample.spec.datasets:
        table = pq.read_table(dataset.uri)
        sizes[dataset.name] = (table.nbytes, len(table))
    return Widths(
        dim=dim or 1024,
        ranks=max((each.width for each in ranks), default=0),
        window=max((each.mining.m for each in plan.legs[0].graphs), default=0),
        text_bytes=text_bytes(sizes),
    )


def _assumptions(
    spec: PipelineSpec, sample: Sample, found: Measured, *, sampled: bool, jobs: Sequence[Job]
) -> Iterator[str]:
    rows = ", ".join(f"{name} {count:,}" for name, count in sample.rows.items())
    sources = {each.source for each in found.timings}
    if "probe" in sources:
        yield f"rates measured here on a sample ({rows} rows), as this machine is loaded now"
    if "records" in sources:
        yield "rates of some stages from records of the store: of this machine, it is taken"
    yield "ranks grow with rows and with pairs of rows, all else with rows, steps or texts"
    most = max(sample.rows.values())
    if found.embedded and found.embedded < most:
        yield (
            f"the teacher embedded {found.embedded:,} rows; for ranks and graphs the others are "
            "copies with noise"
        )
    if sampled:
        yield "the data was not read yet: rows are counted from files, all stages taken as to do"
    if any(vectors for vectors in spec.batches.curriculum if vectors.refresh):
        yield "a student that mines anew embeds as fast as the teacher"
    if spec.incremental and any(job.done for job in jobs):
        yield "stages that begin with an earlier state are counted as if from scratch: at most that"
    if spec.compute.gpus_per_worker:
        yield "memory of GPUs is not predicted"
    if spec.evaluate.benchmarks or spec.promote:
        yield "benchmarks and promotion are not predicted"
    yield "memory is what probes had, and bytes of a row in each table; results take a second"
