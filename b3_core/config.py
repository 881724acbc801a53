"""What a user asks for: frozen pydantic models, one section of CONFIG each.

``PipelineSpec`` is the whole. Every field is either *identity* (it changes what is made and
enters the fingerprint of a stage) or *compute* (it changes only how it is made, and never does):
the sections ``store`` and ``compute`` are compute, all others identity.
"""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from b3_core.errors import InputError

Task = Literal["retrieval", "grounding", "vqa"]
ArmName = Literal["random", "paper", "b3"]

#: False-negative cut-off p by task (arXiv 2505.11293; VQA answers are short and nearly repeat).
DEFAULT_P: dict[str, int] = {"retrieval": 30, "grounding": 30, "vqa": 70}

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Spec(BaseModel):
    """Base of every section: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetSpec(Spec):
    """One parquet dataset of (query, positive) rows."""

    name: Name = Field(description="Names the dataset's folder in the store.")
    uri: str = Field(description="Parquet file, folder or glob; local path or s3://.")
    query: str = Field(description="Column that holds the query text.")
    positive: str = Field(description="Column that holds the positive's text.")
    group: str | None = Field(
        None,
        description="Column whose equal values mark rows that are positives of one another; "
        "by default rows with the same positive text form a group.",
    )
    task: Task = Field("retrieval", description="Sets the default of mining.p.")
    eval_uri: str | None = Field(
        None,
        description="Held-out rows, same columns; by default a share of the groups is held out.",
    )


class TeacherSpec(Spec):
    """The pretrained encoder that ranks positives for each query."""

    model: str = Field(
        "static",
        description="'static' or 'minilm' (both packaged, offline), or a sentence-transformers "
        "model: a folder, or a hub id with its revision.",
    )
    revision: str | None = Field(None, description="Commit of a hub model; required for hub ids.")
    query_prompt: str = Field("", description="Put before every query.")
    positive_prompt: str = Field("", description="Put before every positive.")
    max_length: int | None = Field(
        None, ge=1, description="Tokens kept; the model's own by default."
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the encoder.")


class MiningSpec(Spec):
    """From ranks to communities of exactly ``k`` rows."""

    p: int | None = Field(
        None,
        ge=0,
        description="First ranks dropped as probable false negatives; by task if absent.",
    )
    m: int = Field(100, ge=1, description="Ranks kept after the first p: the window.")
    k: int = Field(32, ge=2, description="Rows in a community.")
    graph: Literal["mutual", "union"] = Field(
        "mutual", description="Edges in both windows only, or in either (mutual ones weigh 2)."
    )
    partitioner: Literal["leiden", "leidenalg", "metis", "random"] = "leiden"
    resolution: float = Field(0.05, gt=0, description="CPM resolution of Leiden.")
    swap_rounds: int = Field(
        20,
        ge=0,
        description="Most passes of the pair-swap refinement; 0 keeps the packed communities.",
    )
    repulsion: float = Field(
        0.0, ge=0, description="Weight (lambda) of keeping rows of rank < p out of the community."
    )

    def cutoff(self, task: str) -> int:
        """Return p: the one given, else the default of the dataset's task."""
        return DEFAULT_P[task] if self.p is None else self.p


class BatchSpec(Spec):
    """From communities to the batches of every epoch."""

    batch_size: int = Field(64, ge=2, description="Rows in a batch: a multiple of mining.k.")
    epochs: int = Field(3, ge=1)
    random_epochs: int = Field(
        1, ge=0, description="First epochs whose batches are drawn at random: the curriculum."
    )

    @model_validator(mode="after")
    def _curriculum_fits(self) -> Self:
        if self.random_epochs > self.epochs:
            raise ValueError(
                f"random_epochs is {self.random_epochs}, more than epochs {self.epochs}"
            )
        return self


class TrainSpec(Spec):
    """The student and its contrastive training (InfoNCE, query to positive)."""

    student: str = Field(
        "static",
        description="'static' (token embeddings from random weights), 'minilm', or a "
        "sentence-transformers model: a folder, or a hub id with its revision.",
    )
    revision: str | None = Field(None, description="Commit of a hub model; required for hub ids.")
    dim: int = Field(256, ge=8, description="Width of the static student.")
    temperature: float = Field(0.05, gt=0)
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Peak; 1e-2 for the static student (sparse Adam), else 2e-5 (AdamW).",
    )
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="Share of the steps that warm up.")
    max_length: int | None = Field(
        None, ge=1, description="Tokens kept; the model's own by default."
    )
    query_prompt: str = ""
    positive_prompt: str = ""
    precision: Literal["fp32", "bf16"] = "fp32"


class EvalSpec(Spec):
    """Held-out queries against every positive of their dataset."""

    holdout: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="Share of groups held out of a dataset that names no eval_uri.",
    )
    max_queries: int = Field(4000, ge=1, description="Held-out queries at most, per dataset.")


class StoreSpec(Spec):
    """Where artifacts live. Credentials come from the environment, never from CONFIG."""

    root: str = Field(".b3", description="Local folder or s3://bucket/prefix.")


class ComputeSpec(Spec):
    """How work is spread; never changes what is made."""

    workers: int | None = Field(
        None, ge=1, description="Teacher actors; one a core or GPU if absent."
    )
    shard_rows: int = Field(
        4096, ge=1, description="Rows a shard; rounded up to whole encoder blocks."
    )
    gpus_per_worker: float = Field(0, ge=0, description="GPU share of one actor or trainer.")
    train_workers: int = Field(1, ge=1, description="Data-parallel trainers.")


class PipelineSpec(Spec):
    """One CONFIG: what to mine, train on and evaluate."""

    name: Name = "pipeline"
    datasets: tuple[DatasetSpec, ...] = Field(min_length=1)
    teacher: TeacherSpec = TeacherSpec()
    mining: MiningSpec = MiningSpec()
    batches: BatchSpec = BatchSpec()
    train: TrainSpec = TrainSpec()
    evaluate: EvalSpec = EvalSpec()
    arms: tuple[ArmName, ...] = Field(
        ("random", "b3"), min_length=1, description="What is trained side by side."
    )
    seeds: tuple[int, ...] = Field(
        (0,), min_length=1, description="Each sets partition, batch order and initial weights."
    )
    store: StoreSpec = StoreSpec()
    compute: ComputeSpec = ComputeSpec()

    @field_validator("teacher", mode="before")
    @classmethod
    def _teacher_by_name(cls, value: object) -> object:
        return {"model": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [d.name for d in self.datasets]
        if len(set(names)) < len(names):
            raise ValueError(f"dataset names {names} are not all different")
        if len(set(self.arms)) < len(self.arms) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("arms and seeds must not repeat")
        if self.batches.batch_size % self.mining.k:
            raise ValueError(
                f"batches.batch_size is {self.batches.batch_size}, "
                f"which is no multiple of mining.k = {self.mining.k}"
            )
        return self

    def arm(self, name: str) -> tuple[MiningSpec, BatchSpec]:
        """Return the mining and batching of one arm; ``b3`` is CONFIG's own.

        ``random`` shuffles rows. ``paper`` is the published recipe: the mutual graph, METIS at its
        defaults, no swaps, no curriculum (arXiv 2505.11293, section 4).
        """
        if name == "random":
            return (
                self.mining.model_copy(update={"partitioner": "random", "swap_rounds": 0}),
                self.batches.model_copy(update={"random_epochs": self.batches.epochs}),
            )
        if name == "paper":
            paper = {"partitioner": "metis", "graph": "mutual", "swap_rounds": 0, "repulsion": 0.0}
            return (
                self.mining.model_copy(update=paper),
                self.batches.model_copy(update={"random_epochs": 0}),
            )
        return self.mining, self.batches


def load_config(path: str | os.PathLike[str]) -> PipelineSpec:
    """Read CONFIG, a YAML file of :class:`PipelineSpec`.

    Relative paths in it are taken from the folder CONFIG lies in, and made absolute: the spec
    may be sent to a worker that runs elsewhere.

    Raises
    ------
    InputError
        The file is missing or no YAML mapping, a key is unknown, or a value is out of bounds.
    """
    file = Path(path)
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(
            f"cannot read CONFIG {file}: {reason}",
            expected="a YAML file",
            remedy="check the path",
        ) from error
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise InputError(
            f"CONFIG {file} is no valid YAML{line}: {getattr(error, 'problem', error)}",
            remedy="mend that line",
        ) from error
    if not isinstance(data, dict):
        raise InputError(f"CONFIG {file} holds no mapping", expected="keys such as 'datasets'")
    return parse_config(data, base=file.resolve().parent)


def parse_config(data: Mapping[str, Any], *, base: Path) -> PipelineSpec:
    """Validate a mapping as :class:`PipelineSpec`; relative paths are taken from ``base``."""
    try:
        spec = PipelineSpec.model_validate(dict(data))
    except ValidationError as error:
        raise _one_line(error) from error
    datasets = [
        d.model_copy(
            update={
                "uri": absolute_uri(d.uri, base),
                "eval_uri": None if d.eval_uri is None else absolute_uri(d.eval_uri, base),
            }
        )
        for d in spec.datasets
    ]
    store = StoreSpec(root=absolute_uri(spec.store.root, base))
    return spec.model_copy(
        update={
            "datasets": tuple(datasets),
            "store": store,
            "teacher": spec.teacher.model_copy(update={"model": _model(spec.teacher.model, base)}),
            "train": spec.train.model_copy(update={"student": _model(spec.train.student, base)}),
        }
    )


def absolute_uri(uri: str, base: Path) -> str:
    """Make a local path absolute from ``base``; leave anything with a scheme alone."""
    return uri if "://" in uri else str((base / Path(uri).expanduser()).absolute())


def _model(model: str, base: Path) -> str:
    folder = base / Path(model).expanduser()
    return str(folder.absolute()) if folder.is_dir() else model


def _one_line(error: ValidationError) -> InputError:
    """Turn pydantic's first complaint into one line, with the nearest known key for a typo."""
    first = error.errors()[0]
    where = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]
    ).lstrip(".")
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        return InputError(
            f"unknown key '{where}' in CONFIG",
            expected=f"one of: {', '.join(known)}",
            remedy=f"did you mean '{near[0]}'?" if near else "remove it",
        )
    if first["type"] == "missing":
        return InputError(f"CONFIG lacks '{where}'", remedy="add it")
    message = first["msg"].removeprefix("Value error, ")
    value = "" if isinstance(first["input"], (dict, list)) else f" is {first['input']!r}"
    if not where:
        return InputError(f"CONFIG is not consistent: {message}", remedy="change one of them")
    return InputError(f"'{where}' in CONFIG{value}: {message}", remedy="correct the value")


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = PipelineSpec
    for part in location:
        if isinstance(part, int):
            continue
        if part == "datasets":
            model = DatasetSpec
            continue
        annotation = model.model_fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)
