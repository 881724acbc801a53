"""What a CONFIG asks for and cannot have, said before hours of work instead of after them."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence

from b3_core import benchmarks, packaged, teacher
from b3_core.config import ComputeSpec, PipelineSpec
from b3_core.errors import InputError
from b3_core.plan import Plan
from b3_core.ray_session import RaySession
from b3_core.stage import Stage, missing
from b3_core.store import ArtifactStore

#: Packaged models, which read texts alone.
_READ_TEXTS = frozenset({"static", "tokens", "minilm"})


def check_teacher(spec: PipelineSpec) -> None:
    """Refuse a teacher that does not read the media of a dataset, or cannot be had.

    Raises
    ------
    InputError
        It is a packaged one of texts, and a side that it reads has images or videos; it is one of
        the hub that is still needed, not on this machine, and the hub may not be asked.
    """
    read = ("positive",) if spec.teacher.reads == "positive" else ("query", "positive")
    for dataset in spec.datasets:
        if spec.teacher.model in _READ_TEXTS and set(read) & dataset.media_columns.keys():
            raise InputError(
                f"teacher {spec.teacher.model} reads texts only, but dataset {dataset.name} has "
                "images or videos",
                expected="a model of images and texts",
                remedy="name one in teacher.model; or, where positives are texts, set "
                "teacher.reads: positive",
            )
    _check_model(spec, spec.teacher.model, spec.teacher.revision, _to_embed)


def check_windows(spec: PipelineSpec, rows: Mapping[str, int]) -> None:
    """Refuse an arm that mines a dataset in which p leaves no row a window.

    Parameters
    ----------
    rows
        Training rows of each dataset, by its name.

    Raises
    ------
    InputError
        p drops all ranks there are: batches would be drawn at random, at the price of mining.
    """
    for name in spec.arm_names:
        mining, batches = spec.arm(name)
        if not mining.mines(batches):
            continue
        for dataset in spec.datasets:
            cutoff, ranks = mining.cutoff(dataset.task), rows[dataset.name] - 1
            if dataset.task != "classification" and cutoff >= ranks:
                raise InputError(
                    f"mining.p = {cutoff} leaves no window in the {ranks + 1:,} training rows of "
                    f"dataset {dataset.name} (arm {name})",
                    expected=f"less than {max(ranks, 0):,}, of which mining.m = {mining.m} ranks "
                    "after the first p are kept",
                    remedy="set a smaller mining.p, or add rows",
                )


def check_student(spec: PipelineSpec) -> None:
    """Refuse a student that does not read the media of a dataset, or cannot be had or trained.

    Raises
    ------
    InputError
        It is a packaged one of texts, and a dataset has images or videos; batches cannot be shared
        out to the trainers; adapters for a packaged student; a package is absent; trainers want
        more GPUs than there are, or would share one; it is one of the hub that is still to be
        trained, not on this machine, and the hub may not be asked.
    """
    for dataset in spec.datasets:
        if spec.train.student in _READ_TEXTS and dataset.media_columns:
            raise InputError(
                f"student {spec.train.student} reads texts only, but dataset {dataset.name} has "
                "images or videos",
                expected="a model of images and texts",
                remedy="name one in train.student",
            )

    trainers = spec.compute.train_workers
    for name in spec.arm_names:
        _, batches = spec.arm(name)
        if batches.batch_size % trainers:
            raise InputError(
                f"batches of {batches.batch_size} rows (arm {name}) cannot be shared out to "
                f"compute.train_workers: {trainers}",
                expected="a batch size that is a multiple of it",
                remedy="change one of them",
            )
    small = spec.train.student in packaged.SMALL
    if small and spec.train.lora is not None:
        raise InputError(
            f"train.lora is set, but student {spec.train.student} has no layers to adapt",
            remedy="remove train.lora, or name a transformer in train.student",
        )
    needed = [("train.lora", "peft")] if spec.train.lora is not None else []
    loggers = ("wandb", "mlflow")  # TensorBoard comes with this package
    needed += [("compute.report_to", name) for name in loggers if name in spec.compute.report_to]
    for setting, package in needed:
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"{setting} needs {package}, which is not installed",
                remedy=f"run: pip install {package}",
            )
    if not small:  # those train on the CPU
        _check_gpus(spec.compute)
    _check_model(spec, spec.train.student, spec.train.revision, _to_train)


def _check_model(
    spec: PipelineSpec,
    name: str,
    revision: str | None,
    todo: Callable[[Plan, ArtifactStore], Sequence[Stage]],
) -> None:
    """Refuse a model of the hub that is not here, unless the store holds all that it is for."""
    if RaySession(spec.compute).joins:  # workers have caches of their own, and say so themselves
        return
    try:
        teacher.check_at_hand(name, revision)
    except InputError:
        store = ArtifactStore(spec.store.root)
        plan = Plan.in_store(spec, store)
        if plan is None or todo(plan, store):
            raise


def _to_embed(plan: Plan, store: ArtifactStore) -> Sequence[Stage]:
    vectors = missing(plan.legs[0].vectors, store)
    return missing((shard for each in vectors for shard in each.shards), store)


def _to_train(plan: Plan, store: ArtifactStore) -> Sequence[Stage]:
    return missing(plan.students, store)


def _check_gpus(compute: ComputeSpec) -> None:
    """Refuse trainers that this machine has no GPUs for, as a session does once it has Ray."""
    session, gpus = RaySession(compute), 0
    if compute.gpus_per_worker and not session.joins:  # what a cluster has is seen when it is open
        import torch  # noqa: PLC0415 - seconds to import

        gpus = torch.cuda.device_count()
    session.check_trainers(gpus)


def check_benchmarks(spec: PipelineSpec) -> None:
    """Refuse benchmarks whose folder or tasks are not there.

    Raises
    ------
    InputError
        The first that is not.
    """
    for each in spec.evaluate.benchmarks:
        benchmarks.asked(each)
