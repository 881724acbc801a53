"""The rows: (query, positive) pairs and their groups, those to train on and those held out.

    PairTable (train, heldout) <-> parquet; RowGroups: without texts; Inputs: as encoders take them

A *group* holds the rows whose positives answer one another's queries: rows with the same positive
(text, and bytes of the medium beside it), and rows with the same value in the group column if there
is one. No row is a negative of another row of its group, and no group is both trained on and held
out of the same files.

Legend: N rows, G groups.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from b3_core.artifacts import Artifact, Draft
from b3_core.config import DatasetSpec
from b3_core.copies import hold
from b3_core.groups import check_groups, codes
from b3_core.inputs import ALL, MEDIUM, PACKED, Inputs, Seeing, Shelf
from b3_core.media import MediaLimits

VERSION = 3

SCHEMA = pa.schema(
    [
        ("row_id", pa.int64()),  # position in the source: files in sorted order, then rows
        ("key", pa.string()),  # hex blake2b-128 of query \0 positive \0 group-column value, and
        # \0 negative where rows came with one, \0 the media's digests where there are any
        ("query", pa.string()),
        ("positive", pa.string()),
        ("group", pa.int32()),
    ]
)


#: The group of a candidate that is nobody's negative: it fills the place of one that is lacking.
NOBODY = -1

#: What triplets have besides: a hard negative's text; and the group whose positive that is, or a
#: number beyond all groups, the same for the same negative. A row that came without one has its own
#: positive there, and ``NOBODY``.
GIVEN = pa.schema([("negative", pa.string()), ("negative_group", pa.int32())])
#: What rows have besides where a side has an image or video.
MEDIA = pa.schema([("query_medium", MEDIUM), ("positive_medium", MEDIUM)])
#: And where the hard negatives that rows came with have some.
GIVEN_MEDIA = pa.schema([("negative_medium", MEDIUM)])

#: Rows that were left out.
SKIPPED = pa.schema(
    [("row_id", pa.int64()), ("side", pa.string()), ("file", pa.string()), ("fault", pa.string())]
)


@dataclass(frozen=True, eq=False)
class PairTable:
    """Rows of one dataset; a *row* anywhere else is a position in this table.

    Raises
    ------
    ValueError
        The columns are not ``SCHEMA``, with ``GIVEN``, ``MEDIA`` and ``GIVEN_MEDIA`` or without; a
        value is null; or a positive is in two groups.
    """

    dataset: str
    table: pa.Table

    def __post_init__(self) -> None:
        schema = schema_like(self.table.column_names)
        if not self.table.schema.equals(schema):
            raise ValueError(f"columns {self.table.schema} are not {schema}")
        if any(column.null_count for column in self.table.columns):
            raise ValueError("a pair table holds nulls")
        check_groups(self.table)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def queries(self) -> pa.ChunkedArray:
        """Query texts, N."""
        return self.table["query"]

    @property
    def positives(self) -> pa.ChunkedArray:
        """Positive texts, N."""
        return self.table["positive"]

    @property
    def has_negatives(self) -> bool:
        """Say whether rows came with hard negatives."""
        return "negative" in self.table.column_names

    @property
    def has_media(self) -> bool:
        """Say whether a side of its rows may have an image or video."""
        return "query_medium" in self.table.column_names

    def inputs(self, side: str, shelf: Shelf | None = None, *, seeing: Seeing = ALL) -> Inputs:
        """Return what an encoder takes of ``query``, ``positive`` or ``negative``, N."""
        return side_inputs(self.table, side, shelf, seeing=seeing)

    @property
    def negatives(self) -> pa.ChunkedArray:
        """Texts of the hard negatives that rows came with, N; KeyError where they did not."""
        return self.table["negative"]

    @cached_property
    def negative_group_N(self) -> npt.NDArray[np.int32] | None:
        """Group of the hard negative that every row came with: int32, N; None where none did."""
        return self.table["negative_group"].to_numpy() if self.has_negatives else None

    @cached_property
    def group_N(self) -> npt.NDArray[np.int32]:
        """Group of every row: int32, N."""
        group_N: npt.NDArray[np.int32] = self.table["group"].to_numpy()
        return group_N

    @cached_property
    def digest(self) -> str:
        """Hex sha256 over keys and groups in row order: the same rows elsewhere have the same."""
        digest = hashlib.sha256()
        for chunk in self.table["key"].chunks:
            digest.update("".join(chunk.to_pylist()).encode())
        digest.update(self.group_N.astype("<i4").tobytes())
        return digest.hexdigest()

    @cached_property
    def places(self) -> str:
        """Hex sha256 over where rows and media are in their source; unlike ``digest``."""
        digest = hashlib.sha256(self.table["row_id"].to_numpy().astype("<i8").tobytes())
        for name in (*MEDIA.names, *GIVEN_MEDIA.names):
            for chunk in self.table[name].chunks if name in self.table.column_names else ():
                digest.update("\0".join(chunk.field("file").to_pylist()).encode())
                for number in ("start", "size"):
                    digest.update(chunk.field(number).to_numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def save(self, draft: Draft, name: str = "pairs") -> None:
        """Write ``<name>.parquet``, the dataset's name in its metadata."""
        named = self.table.replace_schema_metadata({"dataset": self.dataset})
        pq.write_table(named, draft.path(f"{name}.parquet"), compression="zstd")

    @classmethod
    def load(cls, artifact: Artifact, name: str = "pairs") -> Self:
        """Read ``<name>.parquet`` back."""
        table = pq.read_table(artifact.path(f"{name}.parquet"))
        dataset = table.schema.metadata[b"dataset"].decode()
        return cls(dataset, table.replace_schema_metadata())


@dataclass(frozen=True, eq=False)
class RowGroups:
    """Rows of one dataset without their texts: what a plan is checked against, and masked by."""

    dataset: str
    group_N: npt.NDArray[np.int32]
    digest: str
    """As :class:`PairTable` has it."""
    negative_group_N: npt.NDArray[np.int32] | None = None
    """Groups of the hard negatives that rows came with; None where they did not."""

    def __len__(self) -> int:
        return len(self.group_N)

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read the keys and groups of a file that :meth:`PairTable.save` wrote, part by part.

        Raises
        ------
        ValueError
            The columns are not ``SCHEMA``, or the file is no parquet.
        """
        digest = hashlib.sha256()
        with open_rows(file) as parts:
            schema = parts.schema_arrow
            groups = [name for name in ("group", "negative_group") if name in schema.names]
            found: dict[str, list[npt.NDArray[np.int32]]] = {name: [] for name in groups}
            for part in parts.iter_batches(columns=["key", *groups]):
                digest.update("".join(part["key"].to_pylist()).encode())
                for name in groups:
                    found[name].append(part[name].to_numpy())
        group_of = {name: np.concatenate([np.zeros(0, np.int32), *found[name]]) for name in groups}
        digest.update(group_of["group"].astype("<i4").tobytes())
        dataset = (schema.metadata or {}).get(b"dataset", b"").decode()
        return cls(dataset, group_of["group"], digest.hexdigest(), group_of.get("negative_group"))


def side_inputs(rows: pa.Table, side: str, shelf: Shelf | None, *, seeing: Seeing = ALL) -> Inputs:
    """Return what an encoder takes of a side of rows of a pair table."""
    medium_N = rows[f"{side}_medium"] if f"{side}_medium" in rows.column_names else None
    return Inputs(rows[side], medium_N, shelf, seeing)


def shelf_of(dataset: DatasetSpec, artifact: Artifact) -> Shelf:
    """Say where the media of a dataset's rows are, by the artifact that they were saved in."""
    packed = artifact.path(PACKED) if PACKED in artifact.files else None
    if packed is not None:
        hold(packed)  # it is read for as long as rows are
    return Shelf(dataset.media_root, packed, limits_of(dataset))


def limits_of(dataset: DatasetSpec) -> MediaLimits:
    """Return what of a dataset's media is refused."""
    media = dataset.media
    return MediaLimits(media.max_bytes, media.max_pixels, media.max_seconds)


def limits_read(artifact: Artifact) -> MediaLimits:
    """Return what was refused when the rows of an artifact were read."""
    known = artifact.record["settings"].get("limits", {})
    return MediaLimits(**{key: known[key] for key in MediaLimits.__annotations__ if key in known})


def open_rows(file: Path) -> pq.ParquetFile:
    """Open a file that :meth:`PairTable.save` wrote, to read it part by part.

    Raises
    ------
    ValueError
        The columns are not ``SCHEMA``, or the file is no parquet.
    """
    opened = pq.ParquetFile(file)
    names = opened.schema_arrow.names
    if not opened.schema_arrow.equals(schema_like(names)):
        opened.close()
        raise ValueError(f"its columns are {names} and not {SCHEMA.names}, or of other types")
    return opened


def read_groups(artifact: Artifact) -> npt.NDArray[np.int32]:
    """Return the group of every training row of a ``Pairs`` artifact, without reading texts."""
    column = pq.read_table(artifact.path("train.parquet"), columns=["group"])["group"]
    return np.asarray(column.to_numpy())


def read_keys(artifact: Artifact) -> pa.ChunkedArray:
    """Read the keys of an artifact's training rows, and nothing else."""
    return pq.read_table(artifact.path("train.parquet"), columns=["key"])["key"]


def read_known(artifact: Artifact, part: str = "train") -> pa.Table:
    """Read what tells rows of an artifact apart: key, group, positive and what is beside it."""
    file = artifact.path(f"{part}.parquet")
    there = pq.read_schema(file).names
    names = [name for name in ("key", "group", "positive", "positive_medium") if name in there]
    return pq.read_table(file, columns=names)


def rows_before(now: PairTable, before: PairTable) -> npt.NDArray[np.int64]:
    """Return where each row of ``now`` was in ``before``: int64, N; -1 where it is fresh.

    Rows are the same where their keys are. Of rows with one key, the first is the first of then.
    """
    keys = pa.concat_tables([part.table.select(["key"]) for part in (before, now)])["key"]
    code = codes(keys).astype(np.int64)
    order = np.argsort(code, kind="stable")  # runs of one key: rows of then, rows of now
    starts = np.flatnonzero(np.diff(code[order], prepend=-1))
    run = np.cumsum(np.diff(code[order], prepend=-1) != 0) - 1
    then = order < len(before)
    # Within a run, the n-th row of now is the n-th of then, if there are as many.
    many = np.add.reduceat(then, starts)[run] if len(order) else run
    nth = np.arange(len(order)) - starts[run] - many
    found = ~then & (nth < many)
    before_N = np.full(len(now), -1, np.int64)
    before_N[order[found] - len(before)] = order[starts[run[found]] + nth[found]]
    return before_N


def edited_rows(before_N: npt.NDArray[np.int64], rows_before: int) -> npt.NDArray[np.int64]:
    """Return ``before_N`` with the fresh rows that stand where another row is gone.

    A fresh row counts as that row, edited, if it is as far below the last row that stayed as that
    row was. What was edited is likely to be much like what it was.

    Parameters
    ----------
    before_N
        As :func:`rows_before` returns it.
    rows_before
        How many rows there were.
    """
    place_N = np.arange(len(before_N))
    anchor_N = np.maximum.accumulate(np.where(before_N >= 0, place_N, -1))
    stands_N = place_N - anchor_N + np.where(anchor_N >= 0, before_N[anchor_N], -1)
    gone_O = np.ones(rows_before + 1, bool)  # the last for places beyond those of then
    gone_O[before_N[before_N >= 0]] = False
    gone_O[-1] = False
    stands_N = np.minimum(stands_N, rows_before)
    taken_N = (before_N < 0) & gone_O[stands_N]
    # Where rows changed their order, two fresh ones may stand where one row was.
    _, first = np.unique(np.where(taken_N, stands_N, rows_before + 1 + place_N), return_index=True)
    once_N = np.zeros(len(before_N), bool)
    once_N[first] = True
    return np.where(taken_N & once_N, stands_N, before_N)


@dataclass(frozen=True, eq=False)
class Split:
    """Rows to train on and rows held out, with the same group ids.

    Raises
    ------
    ValueError
        A positive text has one group in ``train`` and another in ``heldout``.
    """

    train: PairTable
    heldout: PairTable
    skipped: pa.Table | None = None
    """Media that rows are left out for: row_id, side, file, fault; None where none was."""
    skipped_rows: int = 0
    """How many rows: one may have several such media."""

    def __post_init__(self) -> None:
        check_groups(pa.concat_tables([self.train.table, self.heldout.table]))

    @property
    def overlap(self) -> int:
        """How many held-out rows belong to a group of ``train``: 0 unless ``eval_uri`` is given."""
        return int(np.isin(self.heldout.group_N, self.train.group_N).sum())

    @cached_property
    def repeated(self) -> int:
        """How many held-out rows are in ``train`` themselves, by their keys."""
        keys = (part.table["key"] for part in (self.heldout, self.train))
        return pc.sum(pc.is_in(*keys)).as_py() or 0

    def save(self, draft: Draft) -> None:
        """Write ``train.parquet`` and ``heldout.parquet``."""
        self.train.save(draft, "train")
        self.heldout.save(draft, "heldout")

    @classmethod
    def load(cls, artifact: Artifact) -> Self:
        """Read both tables back."""
        return cls(PairTable.load(artifact, "train"), PairTable.load(artifact, "heldout"))


def cautions(counts: Mapping[str, Any], *, labelled: bool, of: str = "") -> dict[str, str]:
    """Say what to know of a dataset, by the counts of its artifact, before figures are believed.

    Parameters
    ----------
    labelled
        Its task is a classification: labels are shared by nature.
    of
        " of NAME" where the sentences do not stand below the name.

    Returns
    -------
    dict
        ``overlap``: held-out rows whose answers are trained on; ``skipped``: rows left out for bad
        media. Those of which there are none are not in it.
    """
    repeated, held = counts.get("repeated", 0), counts["heldout"]
    overlap = repeated if labelled else counts.get("overlap", 0)
    found = {}
    if overlap:
        what = "are trained on"
        if not labelled:
            what = f"are of groups that are trained on, {repeated:,} of them the very same rows"
        found["overlap"] = f"{overlap:,} of {held:,} held-out rows{of} {what}"
    if skipped := counts.get("skipped", 0):
        rows = "row" if skipped == 1 else "rows"
        found["skipped"] = f"{skipped:,} {rows}{of} left out for bad images or videos"
    return found


def schema_like(names: Sequence[str]) -> pa.Schema:
    """Return the columns that a pair table must have if it has these of those it may have."""
    parts = {"negative": GIVEN, "query_medium": MEDIA, "negative_medium": GIVEN_MEDIA}
    return pa.schema([*SCHEMA, *(f for name in parts if name in names for f in parts[name])])
