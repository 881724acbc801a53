"""The stages that turn a user's files into vectors.

    Pairs -> Shard (one a few thousand rows, by warm workers) -> Vectors

Only ``Pairs`` looks at the user's files. Everything after it depends on the *content* of the
pairs, so a copy of the data elsewhere, or a file rewritten with the same rows, changes nothing.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from b3_core import pairs, teacher
from b3_core.artifacts import Address, Artifact, Draft
from b3_core.config import DatasetSpec, EvalSpec, TeacherSpec, TrainSpec
from b3_core.errors import InputError
from b3_core.progress import Progress, silent
from b3_core.stage import Stage
from b3_core.store import ArtifactStore


@dataclass(frozen=True)
class Pairs(Stage):
    """Read a dataset, check it, form groups, hold rows out."""

    spec: DatasetSpec
    evaluate: EvalSpec
    source: str
    name: ClassVar[str] = "pairs"
    version: ClassVar[int] = pairs.VERSION

    @classmethod
    def of(cls, spec: DatasetSpec, evaluate: EvalSpec) -> Self:
        """Fingerprint the dataset's files as they are now."""
        source = pairs.source_digest(spec.uri)
        if spec.eval_uri is not None:
            source += pairs.source_digest(spec.eval_uri)
        return cls(spec, evaluate, source)

    @property
    def dataset(self) -> str:  # noqa: D102 - the base class says it
        return self.spec.name

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        columns = self.spec.model_dump(include={"query", "positive", "group"})
        return {**columns, **self.evaluate.model_dump(), "own_eval": self.spec.eval_uri is not None}

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {"source": self.source}

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        split = pairs.read_split(self.spec, self.evaluate)
        split.save(draft)
        draft.counts |= {
            "rows": len(split.train),
            "heldout": len(split.heldout),
            "digest": split.train.digest,
            "heldout_digest": split.heldout.digest,
        }


@dataclass(frozen=True)
class PairsRef:
    """A dataset whose pairs are in the store: where, and what identifies their content."""

    spec: DatasetSpec
    address: Address
    digest: str
    heldout_digest: str
    rows: int

    @classmethod
    def of(cls, spec: DatasetSpec, artifact: Artifact) -> Self:
        """Refer to a finished ``Pairs`` artifact."""
        counts = artifact.counts
        return cls(
            spec, artifact.address, counts["digest"], counts["heldout_digest"], counts["rows"]
        )

    def table(self, store: ArtifactStore) -> pairs.PairTable:
        """Load the training rows."""
        return pairs.PairTable.load(store.get(self.address), "train")


@dataclass(frozen=True)
class DatasetStage(Stage):
    """What the stages of one dataset share."""

    ref: PairsRef

    @property
    def dataset(self) -> str:  # noqa: D102 - the base class says it
        return self.ref.spec.name


@dataclass(frozen=True)
class Shard(DatasetStage):
    """Embed rows [start, stop); keyed by their content, so unchanged rows are never redone."""

    teacher_spec: TeacherSpec
    weights: str
    start: int
    stop: int
    content: str
    student: Address | None = None
    """A student of this store that is the teacher here, instead of ``teacher_spec.model``."""
    name: ClassVar[str] = "shard"
    version: ClassVar[int] = teacher.VERSION

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return _teacher_settings(self.teacher_spec)

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {"weights": self.weights, "rows": self.content}

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        encoder = _load_teacher(store, self.teacher_spec, self.student)
        self.embed(encoder, self.ref.table(store), draft, progress)

    def embed(
        self,
        encoder: teacher.Teacher,
        table: pairs.PairTable,
        draft: Draft,
        progress: Progress = silent,
    ) -> None:
        """Embed with a teacher that is warm already."""
        rows = slice(self.start, self.stop)
        texts = table.queries[rows].to_pylist(), table.positives[rows].to_pylist()
        prompts = self.teacher_spec.query_prompt, self.teacher_spec.positive_prompt
        sides = [
            encoder.encode(text, prompt=prompt, progress=progress)
            for text, prompt in zip(texts, prompts, strict=True)
        ]
        teacher.Embeddings(*sides).save(draft)
        draft.counts["rows"] = self.stop - self.start


class ShardWorker:
    """The Ray actor of the teacher: loads it once, then embeds any shard it is handed."""

    def __init__(self, spec: TeacherSpec, root: str, student: Address | None = None) -> None:
        self.store = ArtifactStore(root)
        self.encoder = _load_teacher(self.store, spec, student)
        self._table: tuple[Address, pairs.PairTable] | None = None

    def run(self, shard: Shard) -> None:
        """Make one shard's artifact unless it is there."""
        if self.store.find(shard.address) is not None:
            return
        if self._table is None or self._table[0] != shard.ref.address:
            self._table = (shard.ref.address, shard.ref.table(self.store))
        with self.store.draft(
            shard.address, lineage=shard.inputs, settings=shard.settings
        ) as draft:
            shard.embed(self.encoder, self._table[1], draft)


@dataclass(frozen=True)
class Vectors(DatasetStage):
    """All rows' embeddings: the shards, joined. How they were cut is no part of the identity."""

    teacher_spec: TeacherSpec
    weights: str
    shards: tuple[Shard, ...]
    name: ClassVar[str] = "embeddings"
    version: ClassVar[int] = teacher.VERSION

    @classmethod
    def of(cls, store: ArtifactStore, ref: PairsRef, spec: TeacherSpec, shard_rows: int) -> Self:
        """Cut the dataset into shards, each named by its rows' content."""
        weights = teacher.weights_of(spec.model, spec.revision)
        keys = ref.table(store).table["key"]
        shards = tuple(
            Shard(ref, spec, weights, start, stop, _digest(keys[start:stop].to_pylist()))
            for start, stop in teacher.shard_bounds(ref.rows, shard_rows)
        )
        return cls(ref, spec, weights, shards)

    def by_student(self, student: Address, train: TrainSpec) -> Self:
        """Return the same rows as a student of the store embeds them, with its own prompts."""
        spec = TeacherSpec(
            model="student",
            query_prompt=train.query_prompt,
            positive_prompt=train.positive_prompt,
            max_length=train.max_length,
            precision=train.precision,
        )
        weights = student.fingerprint
        shards = tuple(
            replace(shard, teacher_spec=spec, weights=weights, student=student)
            for shard in self.shards
        )
        return replace(self, teacher_spec=spec, weights=weights, shards=shards)

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return _teacher_settings(self.teacher_spec)

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {"weights": self.weights, "pairs": self.ref.digest}

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        parts = [teacher.Embeddings.load(store.get(shard.address)) for shard in self.shards]
        joined = teacher.Embeddings.concatenate(parts)
        joined.save(draft)
        draft.counts |= {"rows": joined.query_ND.shape[0], "width": joined.query_ND.shape[1]}


def check_rows(ref: PairsRef, *, k: int, batch_size: int) -> None:
    """Refuse a dataset that cannot fill one community and one batch.

    Raises
    ------
    InputError
        It has too few rows.
    """
    need = max(k, batch_size)
    if ref.rows < need:
        raise InputError(
            f"dataset {ref.spec.name} has {ref.rows} training rows",
            expected=f"at least {need} (mining.k = {k}, batches.batch_size = {batch_size})",
            remedy="add rows, or set smaller mining.k and batches.batch_size",
        )


def _load_teacher(
    store: ArtifactStore, spec: TeacherSpec, student: Address | None
) -> teacher.Teacher:
    if student is None:
        return teacher.Teacher(spec)
    with store.get(student).folder("model") as folder:
        own = spec.model_copy(update={"model": str(folder), "revision": None})
        return teacher.Teacher(own)


def _teacher_settings(spec: TeacherSpec) -> dict[str, Any]:
    # Which weights is in the inputs, by content: a model's path is no part of what it is.
    return spec.model_dump(exclude={"model", "revision"})


def _digest(keys: list[str]) -> str:
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:20]
