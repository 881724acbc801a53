"""The stages that turn pairs into vectors.

    Pairs -> Shard (one a few thousand rows, by warm workers) -> Vectors
    Pairs of now and then, Vectors of then: shards of the fresh rows alone -> Vectors

A shard is named by the content of its rows, wherever in the dataset they stand.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import pyarrow as pa
import pyarrow.compute as pc

from b3_core import pairs, teacher
from b3_core.artifacts import Address, Artifact, Draft
from b3_core.config import TeacherSpec, TrainSpec
from b3_core.dataset_stage import (
    DatasetStage,
    Earlier,
    Pairs,
    PairsRef,
    begun_with,
    kept_out_of,
)
from b3_core.inputs import Shelf
from b3_core.progress import Progress, silent
from b3_core.stage import Past
from b3_core.store import ArtifactStore

MOST_FRESH = 0.2  # share of new rows beyond which nothing is carried over
LOOK_BACK = 8  # earlier states of a dataset that are looked at for the one with most of its rows


@dataclass(frozen=True)
class Shard(DatasetStage):
    """Embed rows [start, stop); keyed by their content, so the same rows are never redone."""

    teacher_spec: TeacherSpec
    weights: str
    start: int
    stop: int
    content: str
    student: Address | None = None
    """A student of this store that is the teacher here, instead of ``teacher_spec.model``."""
    earlier: PairsRef | None = None
    """Rows are counted among those that are fresh since then; among all if there was nothing."""
    name: ClassVar[str] = "shard"
    version: ClassVar[int] = teacher.VERSION

    @property
    def loaded(self) -> TeacherSpec:
        """The teacher as it is loaded: shards of other prompts share it."""
        return self.teacher_spec.model_copy(update={"query_prompt": "", "positive_prompt": ""})

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return _teacher_settings(self.teacher_spec)

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {"weights": self.weights, "rows": self.content}

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        with teacher.one_thread():
            encoder = _load_teacher(store, self.teacher_spec, self.student)
            rows = self.rows(store)
            self.embed(encoder, rows, draft, shelf=self.ref.shelf(store), progress=progress)

    def rows(self, store: ArtifactStore) -> pa.Table:
        """Load the rows that ``start`` and ``stop`` count: all, or the fresh ones."""
        return _fresh_rows(self.ref, self.earlier, store)

    def embed(
        self,
        encoder: teacher.Teacher,
        rows: pa.Table,
        draft: Draft,
        *,
        shelf: Shelf | None,
        progress: Progress = silent,
    ) -> None:
        """Embed with a teacher that is warm already."""
        mine = rows.slice(self.start, self.stop - self.start)
        spec = self.teacher_spec
        prompt_of = encoder.prompts(spec)
        vectors = {
            side: encoder.encode(
                pairs.side_inputs(mine, side, shelf, seeing=teacher.seeing(spec)),
                prompt=prompt_of[side],
                progress=progress,
            )
            for side in (("positive",) if spec.reads == "positive" else ("query", "positive"))
        }
        positive_ND = vectors["positive"]
        query_ND = vectors.get("query", positive_ND)
        teacher.check_norms(query_ND, positive_ND, mine["row_id"].to_numpy())
        teacher.Embeddings(query_ND, positive_ND).save(draft)
        draft.counts["rows"] = self.stop - self.start
        if None in (spec.query_prompt, spec.positive_prompt):  # left to a model of the hub
            draft.counts["prompts"] = prompt_of


class ShardWorker:
    """The Ray actor that embeds shards: it keeps the teacher of the last one, and its rows."""

    def __init__(self, root: str) -> None:
        self.store = ArtifactStore(root)
        self._loaded: tuple[TeacherSpec, Address | None] | None = None
        self._encoder: teacher.Teacher | None = None
        self._rows: tuple[PairsRef | None, ...] = ()
        self._table: pa.Table | None = None

    def run(self, shard: Shard) -> None:
        """Make one shard's artifact unless it is there."""
        if self.store.find(shard.address) is not None:
            return
        encoder = self._teacher(shard)
        if self._rows != (shard.ref, shard.earlier):
            self._rows, self._table = (shard.ref, shard.earlier), shard.rows(self.store)
        with self.store.draft(
            shard.address, lineage=shard.inputs, settings=shard.settings
        ) as draft:
            shelf = shard.ref.shelf(self.store)
            shard.embed(encoder, self._table, draft, shelf=shelf)

    def _teacher(self, shard: Shard) -> teacher.Teacher:
        asked = (shard.loaded, shard.student)
        if self._encoder is None or self._loaded != asked:
            if self._encoder is not None:  # two large ones might not fit
                self._encoder = None
                teacher.free_memory()
            self._encoder = _load_teacher(self.store, *asked)
            self._loaded = asked
        return self._encoder


@dataclass(frozen=True)
class Vectors(DatasetStage):
    """All rows' embeddings: the shards, joined. How they were cut is no part of the identity."""

    teacher_spec: TeacherSpec
    weights: str
    shards: tuple[Shard, ...]
    earlier: Earlier | None = None
    """Where the vectors of rows that were there before come from; shards are of the others."""
    whole: "Vectors | None" = None
    """The same without ``earlier``."""
    name: ClassVar[str] = "embeddings"
    version: ClassVar[int] = teacher.VERSION

    @classmethod
    def of(cls, store: ArtifactStore, ref: PairsRef, spec: TeacherSpec, shard_rows: int) -> Self:
        """Cut the dataset into shards, each named by its rows' content."""
        weights = teacher.weights_of(spec.model, spec.revision)
        spec = teacher.with_own_prompts(ref.spec.prompted(spec))
        shards = _shards(store, Shard(ref, spec, weights, 0, 0, ""), shard_rows)
        return cls(ref, spec, weights, shards)

    def since(self, past: Past, shard_rows: int) -> Self:
        """Return the same rows' vectors with as much as can be from before; else this itself.

        Nothing is carried over where all vectors are there already, where this teacher never
        embedded the dataset, or where more than ``MOST_FRESH`` of the rows are new.
        """
        earlier = None if past.store.find(self.address) else self._before(past)
        if earlier is None:
            return self
        shard = Shard(self.ref, self.teacher_spec, self.weights, 0, 0, "", earlier=earlier.ref)
        shards = _shards(past.store, shard, shard_rows)
        if shards and shards[-1].stop > MOST_FRESH * self.ref.rows:
            return self
        return replace(self, shards=shards, earlier=earlier, whole=self)

    def _before(self, past: Past) -> Earlier | None:
        """Find the vectors of which most rows are these, or those that these were made from."""
        same = [
            (artifact, artifact.record["lineage"])
            for artifact in past.like(self)
            if artifact.record["lineage"]["weights"] == self.weights
        ]
        done = [lineage["earlier"] for _, lineage in same if lineage["pairs"] == self.ref.digest]
        others = {
            lineage["pairs"]: artifact.address
            for artifact, lineage in same
            if lineage["pairs"] != self.ref.digest
            and (not done or artifact.fingerprint == done[-1])
        }
        stored: dict[str, Artifact] = {}
        kept_out = self.ref.kept_out(past.store)
        for made in past.artifacts(self.dataset, Pairs.name):
            if made.counts["digest"] not in stored or kept_out_of(made) == kept_out:
                stored[made.counts["digest"]] = made  # the same rows may have been left otherwise
        known = [digest for digest in reversed(others) if digest in stored][:LOOK_BACK]
        if not known:
            return None
        keys = pairs.read_keys(past.store.get(self.ref.address))
        shared = {
            digest: pc.sum(pc.is_in(keys, value_set=pairs.read_keys(stored[digest]))).as_py() or 0
            for digest in known
        }
        best = max(known, key=lambda digest: shared[digest])  # of equals the last that was made
        return Earlier(PairsRef.of(self.ref.spec, stored[best]), others[best])

    def by_student(self, student: Address, train: TrainSpec) -> Self:
        """Return the same rows as a student of the store embeds them, with its own prompts."""
        spec = TeacherSpec(
            model="student",
            query_prompt=train.query_prompt,
            positive_prompt=train.positive_prompt,
            max_length=train.max_length,
            image_side=train.image_side,
            frames=train.frames,
            precision=train.precision,
        )
        spec = self.ref.spec.prompted(spec)
        weights = student.fingerprint
        shards = tuple(
            replace(shard, teacher_spec=spec, weights=weights, student=student)
            for shard in (self.whole or self).shards
        )
        return replace(
            self, teacher_spec=spec, weights=weights, shards=shards, earlier=None, whole=None
        )

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return _teacher_settings(self.teacher_spec)

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {
            "weights": self.weights,
            "pairs": self.ref.digest,
            **begun_with(self.earlier),
        }

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        parts = (store.get(shard.address) for shard in self.shards)
        if self.earlier is None:
            width = teacher.Embeddings.join(parts, draft, rows=self.ref.rows)
        else:
            before_N = pairs.rows_before(self.ref.table(store), self.earlier.ref.table(store))
            then = teacher.Embeddings.load(store.get(self.earlier.address))
            joined = then.carried(before_N, [teacher.Embeddings.load(part) for part in parts])
            joined.save(draft)
            width = joined.query_ND.shape[1]
            draft.counts["carried"] = int((before_N >= 0).sum())
        draft.counts |= {"rows": self.ref.rows, "width": width}


def _fresh_rows(ref: PairsRef, earlier: PairsRef | None, store: ArtifactStore) -> pa.Table:
    now = ref.table(store)
    if earlier is None:
        return now.table
    fresh_N = pairs.rows_before(now, earlier.table(store)) < 0
    return now.table.filter(pa.array(fresh_N))  # take would join the texts, 2 GiB at most


def _shards(store: ArtifactStore, shard: Shard, shard_rows: int) -> tuple[Shard, ...]:
    """Cut the rows that a shard counts into shards like it."""
    keys = shard.rows(store)["key"]
    return tuple(
        replace(shard, start=start, stop=stop, content=content_of(keys[start:stop].to_pylist()))
        for start, stop in teacher.shard_bounds(len(keys), shard_rows)
    )


def load_student(store: ArtifactStore, student: Address, train: TrainSpec) -> teacher.Teacher:
    """Load a trained student to embed with, shown as much of media as it was trained on."""
    spec = TeacherSpec(
        model="student",
        max_length=train.max_length,
        image_side=train.image_side,
        frames=train.frames,
        precision=train.precision,
    )
    return _load_teacher(store, spec, student)


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
    settings = spec.model_dump(exclude={"model", "revision"})
    later = ("pooling", "reads", "image_side", "frames")
    for name in later:  # what was embedded before there was a choice stays
        if settings[name] == TeacherSpec.model_fields[name].default:
            del settings[name]
    return settings


def content_of(keys: list[str]) -> str:
    """Name rows by their keys."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:20]
