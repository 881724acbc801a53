"""The stage that reads a user's files, and what later stages of a dataset share.

Only ``Pairs`` looks at the user's files. Everything after it depends on the *content* of the
pairs, so a copy of the data elsewhere, or a file rewritten with the same rows, changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from b3_core import pairs, reading
from b3_core.artifacts import Address, Artifact, Draft
from b3_core.config import DatasetSpec, EvalSpec
from b3_core.errors import InputError
from b3_core.inputs import PACKED, Shelf
from b3_core.progress import Progress
from b3_core.source import source_digest
from b3_core.stage import Stage
from b3_core.store import ArtifactStore

_KEPT_OUT = ("holdout", "max_queries", "kept_back", "trial", "own_eval")  # settings of Pairs


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
        looks = (
            source_digest(uri) + reading.media_look(spec, uri) for uri in reading.uris_of(spec)
        )
        return cls(spec, evaluate, "".join(looks))

    @property
    def dataset(self) -> str:  # noqa: D102 - the base class says it
        return self.spec.name

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        columns = self.spec.model_dump(include={"query", "positive", "group"})
        if self.spec.negative is not None:
            columns["negative"] = self.spec.negative
        if self.spec.media_columns:  # what was read before there were any stays
            columns |= {
                "media": self.spec.media_columns,
                "limits": self.spec.media.model_dump(exclude={"root", "frames"}),
                "layout": self.spec.layout,
            }
            if self.spec.media.frames not in ((), reading.FRAMES):
                columns["frames"] = list(self.spec.media.frames)
        elif self.spec.layout != "columns":
            columns["layout"] = self.spec.layout
        held_out = self.evaluate.model_dump(include={"holdout", "max_queries"})
        for name in ("kept_back", "trial"):  # what was read before there was a choice stays
            if value := getattr(self.evaluate, name):
                held_out[name] = value
        if self.spec.eval_uri is not None:
            held_out["compared"] = True  # with the rows to train on: not so what was read before
        return {**columns, **held_out, "own_eval": self.spec.eval_uri is not None}

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {"source": self.source}

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        split = reading.read_split(
            self.spec, self.evaluate, packed=draft.path(PACKED), progress=progress
        )
        split.save(draft)
        if self.spec.eval_uri is not None:  # otherwise none can be
            draft.counts |= {"overlap": split.overlap, "repeated": split.repeated}
        if split.skipped is not None:
            pq.write_table(split.skipped, draft.path("skipped.parquet"), compression="zstd")
            draft.counts["skipped"] = split.skipped_rows
        draft.counts |= {
            "rows": len(split.train),
            "heldout": len(split.heldout),
            "digest": split.train.digest,
            "heldout_digest": split.heldout.digest,
            "places": split.train.places,
        }


@dataclass(frozen=True)
class PairsRef:
    """A dataset whose pairs are in the store: where, and what identifies their content."""

    spec: DatasetSpec
    address: Address
    digest: str
    heldout_digest: str
    rows: int
    places: str
    """What identifies where rows are in their source."""

    @classmethod
    def of(cls, spec: DatasetSpec, artifact: Artifact) -> Self:
        """Refer to a finished ``Pairs`` artifact."""
        counts = artifact.counts
        known = (counts[name] for name in ("digest", "heldout_digest", "rows", "places"))
        return cls(spec, artifact.address, *known)

    def table(self, store: ArtifactStore) -> pairs.PairTable:
        """Load the training rows."""
        return pairs.PairTable.load(store.get(self.address), "train")

    def group_N(self, store: ArtifactStore) -> npt.NDArray[np.int32]:
        """Load the groups of the training rows alone."""
        return pairs.read_groups(store.get(self.address))

    def warnings(self, store: ArtifactStore) -> list[str]:
        """Say what to know of its rows before figures are believed, if anything."""
        made = store.get(self.address)
        labelled = self.spec.task == "classification"
        found = pairs.cautions(made.counts, labelled=labelled, of=f" of {self.spec.name}")
        if "skipped" in found:
            found["skipped"] += f", listed in {made.uri}/{made.files['skipped.parquet'].path}"
        return list(found.values())

    def kept_out(self, store: ArtifactStore) -> dict[str, Any]:
        """Say how rows of the files were chosen that are not trained on."""
        return kept_out_of(store.get(self.address))

    def shelf(self, store: ArtifactStore) -> Shelf | None:
        """Say where the media of its rows are; None where no side has any."""
        if not self.spec.media_columns:
            return None
        return pairs.shelf_of(self.spec, store.get(self.address))


def kept_out_of(made: Artifact) -> dict[str, Any]:
    """Say how rows were chosen that a ``Pairs`` artifact keeps out of training."""
    return {key: made.record["settings"].get(key) for key in _KEPT_OUT}


@dataclass(frozen=True)
class DatasetStage(Stage):
    """What the stages of one dataset share."""

    ref: PairsRef

    @property
    def dataset(self) -> str:  # noqa: D102 - the base class says it
        return self.ref.spec.name


@dataclass(frozen=True)
class Earlier:
    """What a dataset held when it was mined before, and what a stage made of it then."""

    ref: PairsRef
    address: Address


def begun_with(earlier: Earlier | None) -> dict[str, str]:
    """Name what a stage begins with as one of its inputs; nothing where it begins with nothing."""
    return {"earlier": earlier.address.fingerprint} if earlier else {}


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
