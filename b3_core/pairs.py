"""The rows: (query, positive) pairs, their groups, and which of them are held out.

    files -> rows -> their media looked at -> keys -> held out by group -> groups
          -> PairTable (train, heldout)

A *group* holds the rows whose positives answer one another's queries: rows with the same positive
(text, and bytes of the medium beside it), and rows with the same value in the group column if there
is one. No row is a negative of another row of its group, and no group is both trained on and held
out of the same files.

Everything is chosen by hashes of what rows hold, never by where they stand.

Legend: N rows, G groups.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from b3_core.artifacts import Artifact, Draft
from b3_core.config import DatasetSpec, EvalSpec
from b3_core.errors import InputError
from b3_core.inputs import ALL, MEDIUM, PACKED, Inputs, Packer, Seeing, Shelf
from b3_core.media import Look, MediaLimits, look_at
from b3_core.media_columns import SIDES, MediaColumns
from b3_core.progress import Progress, silent
from b3_core.source import media_listing, read_rows, source_digest

__all__ = [
    "SCHEMA",
    "VERSION",
    "PairTable",
    "RowGroups",
    "Split",
    "edited_rows",
    "group_ids",
    "media_look",
    "open_rows",
    "read_keys",
    "read_split",
    "rows_before",
    "shelf_of",
    "side_inputs",
    "source_digest",
    "uris_of",
]

VERSION = 1

SCHEMA = pa.schema(
    [
        ("row_id", pa.int64()),  # position in the source: files in sorted order, then rows
        ("key", pa.string()),  # hex blake2b-128 of query \0 positive \0 group-column value, and
        # \0 negative where rows came with one, \0 both media's digests where there are any
        ("query", pa.string()),
        ("positive", pa.string()),
        ("group", pa.int32()),
    ]
)


#: What triplets have besides: a hard negative's text; and the group whose positive that is, or a
#: number beyond all groups, the same for the same text.
GIVEN = pa.schema([("negative", pa.string()), ("negative_group", pa.int32())])
#: What rows have besides where a side has an image or video.
MEDIA = pa.schema([("query_medium", MEDIUM), ("positive_medium", MEDIUM)])

#: Before the text of a query or positive, in MMEB's files, where its image stands.
_MMEB_MARK = "<|image_1|>"
_LOOKERS = 4  # processes that decode media at most


#: Rows that were left out.
SKIPPED = pa.schema(
    [("row_id", pa.int64()), ("side", pa.string()), ("file", pa.string()), ("fault", pa.string())]
)
_UNSEEN = Look("", "")  # of a side without a medium


@dataclass(frozen=True, eq=False)
class PairTable:
    """Rows of one dataset; a *row* anywhere else is a position in this table.

    Raises
    ------
    ValueError
        The columns are not ``SCHEMA``, with ``GIVEN`` and ``MEDIA`` or without; a value is null; or
        a positive is in two groups.
    """

    dataset: str
    table: pa.Table

    def __post_init__(self) -> None:
        schema = _schema_like(self.table.column_names)
        if not self.table.schema.equals(schema):
            raise ValueError(f"columns {self.table.schema} are not {schema}")
        if any(column.null_count for column in self.table.columns):
            raise ValueError("a pair table holds nulls")
        _check_groups(self.table)

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
        """Return what an encoder takes of ``query`` or ``positive``, N."""
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
    """Return what an encoder takes of ``query`` or ``positive`` of rows of a pair table."""
    medium_N = rows[f"{side}_medium"] if f"{side}_medium" in rows.column_names else None
    return Inputs(rows[side], medium_N, shelf, seeing)


def shelf_of(dataset: DatasetSpec, artifact: Artifact) -> Shelf:
    """Say where the media of a dataset's rows are, by the artifact that they were saved in."""
    packed = artifact.path(PACKED) if PACKED in artifact.files else None
    return Shelf(dataset.media_root, packed, _limits(dataset))


def open_rows(file: Path) -> pq.ParquetFile:
    """Open a file that :meth:`PairTable.save` wrote, to read it part by part.

    Raises
    ------
    ValueError
        The columns are not ``SCHEMA``, or the file is no parquet.
    """
    opened = pq.ParquetFile(file)
    names = opened.schema_arrow.names
    if not opened.schema_arrow.equals(_schema_like(names)):
        opened.close()
        raise ValueError(f"its columns are {names} and not {SCHEMA.names}, or of other types")
    return opened


def read_keys(artifact: Artifact, part: str = "train") -> pa.ChunkedArray:
    """Read the keys of an artifact's training rows, or of another part, and nothing else."""
    return pq.read_table(artifact.path(f"{part}.parquet"), columns=["key"])["key"]


def rows_before(now: PairTable, before: PairTable) -> npt.NDArray[np.int64]:
    """Return where each row of ``now`` was in ``before``: int64, N; -1 where it is fresh.

    Rows are the same where their keys are. Of rows with one key, the first is the first of then.
    """
    keys = pa.concat_tables([part.table.select(["key"]) for part in (before, now)])["key"]
    code = keys.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
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
    """Rows left out for a medium of theirs: row_id, side, file, fault; None where none was."""

    def __post_init__(self) -> None:
        _check_groups(pa.concat_tables([self.train.table, self.heldout.table]))

    @property
    def overlap(self) -> int:
        """How many held-out rows belong to a group of ``train``: 0 unless ``eval_uri`` is given."""
        return int(np.isin(self.heldout.group_N, self.train.group_N).sum())

    def save(self, draft: Draft) -> None:
        """Write ``train.parquet`` and ``heldout.parquet``."""
        self.train.save(draft, "train")
        self.heldout.save(draft, "heldout")

    @classmethod
    def load(cls, artifact: Artifact) -> Self:
        """Read both tables back."""
        return cls(PairTable.load(artifact, "train"), PairTable.load(artifact, "heldout"))


def uris_of(dataset: DatasetSpec) -> list[str]:
    """Return where a dataset's rows are: its own, and those held out, if they are named."""
    return [uri for uri in (dataset.uri, dataset.eval_uri) if uri is not None]


def media_look(dataset: DatasetSpec, uri: str) -> str:
    """Say what the media that rows name by path look like; blank where there are none."""
    kinds = dataset.media_columns.values()
    if not kinds:
        return ""
    columns = [column for kind in kinds for column in kind.values()]
    return media_listing(uri, columns, dataset.media_root)


def read_split(
    dataset: DatasetSpec,
    evaluate: EvalSpec,
    *,
    packed: Path | None = None,
    progress: Progress = silent,
) -> Split:
    """Read a dataset, check it, form its groups and hold rows out.

    Held-out rows come from ``dataset.eval_uri`` if there is one. Otherwise a share
    ``evaluate.holdout`` of the groups is held out: whole groups in the order of a hash of their
    rows, as many as fit in ``evaluate.max_queries`` rows, one at least. More rows than that are
    cut, in the order of their hashes; those cut are in neither table.

    Parameters
    ----------
    packed
        File for media that came as bytes.
    progress
        Told how many media have been looked at.

    Returns
    -------
    Split
        Exact duplicates are kept. Group ids count up in order of first appearance, train first.

    Raises
    ------
    InputError
        The files cannot be used (see :func:`b3_core.source.read_rows`), a medium is bad and
        ``dataset.media.bad`` says to refuse it, or all rows to train on form a single group.
    """
    reader = _Reader(dataset, packed, progress)
    rows = reader.read(dataset.uri)
    if dataset.eval_uri is None:
        train, heldout = _hold_out(rows, dataset.uri, evaluate)
    else:
        train = rows
        heldout = _cap(reader.read(dataset.eval_uri), evaluate.max_queries)
    reader.close()
    rows = pa.concat_tables([train, heldout])
    group_N = _groups(rows)
    _check_contrast(group_N[: len(train)], dataset.uri)
    pairs = _pair_table(rows, group_N)
    return Split(
        # One chunk, so that how the source was cut shows nowhere in what is saved.
        PairTable(dataset.name, pairs[: len(train)].combine_chunks()),
        PairTable(dataset.name, pairs[len(train) :].combine_chunks()),
        pa.concat_tables(reader.skipped) if reader.skipped else None,
    )


def group_ids(
    positive_N: pa.ChunkedArray, mark_N: pa.ChunkedArray | None = None
) -> npt.NDArray[np.int32]:
    """Give every row the number of its group, counted in order of first appearance.

    Rows with equal ``positive_N``, or with equal ``mark_N`` where given, are in one group: the
    groups are the connected components of the graph between positives and marks whose edges are
    the rows.

    Parameters
    ----------
    positive_N, mark_N
        Text, without nulls.

    Returns
    -------
    numpy.ndarray
        int32, N.
    """
    code_N = _codes(positive_N)
    if mark_N is None:
        return code_N
    # Positives are the first nodes, in order of appearance, and components are numbered by node.
    first_mark = code_N.max(initial=-1) + 1
    node_N = first_mark + _codes(mark_N)
    nodes = node_N.max(initial=-1) + 1
    edges = coo_array((np.ones(len(node_N), bool), (code_N, node_N)), shape=(nodes, nodes))
    component: npt.NDArray[np.int32] = connected_components(edges, directed=False)[1]
    return component[code_N]


class _Reader:
    """Reads the rows of one dataset, and leaves out those whose media are bad.

    Rows have columns row_id, key, query, positive and, where there are, group (text), negative,
    query_medium and positive_medium.
    """

    def __init__(self, dataset: DatasetSpec, packed: Path | None, progress: Progress) -> None:
        self.skipped: list[pa.Table] = []
        self._dataset, self._progress = dataset, progress
        self._packed = packed
        self._packer = None if packed is None else Packer(packed)

    def close(self) -> None:
        if self._packer is not None:
            self._packer.close()

    def read(self, uri: str) -> pa.Table:
        dataset = self._dataset
        columns = {
            role: column
            for role in ("query", "positive", "group", "negative")
            if (column := getattr(dataset, role)) is not None
        }
        table = read_rows(uri, columns, self._media())
        table = table.add_column(0, "row_id", pa.array(np.arange(len(table))))
        if dataset.layout == "mmeb":
            for name in {"query", "positive", "negative"} & set(table.column_names):
                table = _set(table, name, _unmarked(table[name]))
        if dataset.media_columns:
            table = self._looked_at(table, uri)
        keys = pa.chunked_array([_keys(batch) for batch in table.to_batches()], pa.string())
        return table.add_column(1, "key", keys)

    def _media(self) -> MediaColumns | None:
        if not self._dataset.media_columns:
            return None
        assert self._packer is not None
        return MediaColumns(self._dataset.media_columns, self._dataset.media_root, self._packer.add)

    def _looked_at(self, table: pa.Table, uri: str) -> pa.Table:
        """Decode every medium once; name each by its bytes, and refuse or skip those that fail."""
        assert self._packer is not None
        self._packer.flush()
        place_of = {side: table[f"{side}_medium"].to_pylist() for side in SIDES}
        places = list(
            dict.fromkeys(
                tuple(place.values()) for side in SIDES for place in place_of[side] if place["kind"]
            )
        )
        looks = dict(zip(places, self._looks(places), strict=True))
        fault_of = {}
        for side in SIDES:
            found = [looks.get(tuple(place.values()), _UNSEEN) for place in place_of[side]]
            fault_of[side] = [look.fault for look in found]
            named = [
                {**place, "digest": look.digest}
                for place, look in zip(place_of[side], found, strict=True)
            ]
            table = _set(table, f"{side}_medium", pa.chunked_array([pa.array(named, MEDIUM)]))
        bad = [
            {"row_id": row, "side": side, "file": place["file"], "fault": fault}
            for side in SIDES
            for row, (place, fault) in enumerate(zip(place_of[side], fault_of[side], strict=True))
            if fault
        ]
        return self._without(table, bad, uri) if bad else table

    def _looks(self, places: Sequence[tuple[Any, ...]]) -> list[Look]:
        """Look at media in files and packed ones, each where they are."""
        lookers = min(_LOOKERS, os.cpu_count() or 1)
        limits = _limits(self._dataset)
        found: dict[tuple[Any, ...], Look] = {}
        inside = [place for place in places if place[1] == ""]
        outside = [place for place in places if place[1] != ""]
        assert self._packed is not None
        for root, part, named in (
            (self._dataset.media_root, outside, outside),
            (str(self._packed.parent), inside, [(k, PACKED, *at) for k, _, *at in inside]),
        ):
            if part:
                looks = look_at(
                    root, named, limits=limits, workers=lookers, progress=self._progress
                )
                found |= dict(zip(part, looks, strict=True))
        return [found[place] for place in places]

    def _without(self, table: pa.Table, bad: list[dict[str, Any]], uri: str) -> pa.Table:
        rows = len({each["row_id"] for each in bad})
        first = bad[0]
        where = f"{first['file'] or 'bytes'} of row {first['row_id']}: {first['fault']}"
        kept_N = np.ones(len(table), bool)
        kept_N[[each["row_id"] for each in bad]] = False
        if self._dataset.media.bad == "refuse" or not kept_N.any():
            raise InputError(
                f"{rows} of {len(table)} rows of {uri} have bad media, first {where}",
                expected="images and videos that can be read",
                remedy="mend them, or set media.bad of the dataset to skip",
            )
        self.skipped.append(pa.Table.from_pylist(bad, schema=SKIPPED))
        return table.filter(pa.array(kept_N))


def _set(table: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def _unmarked(text_N: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.utf8_trim_whitespace(pc.replace_substring(text_N, _MMEB_MARK, ""))


def _limits(dataset: DatasetSpec) -> MediaLimits:
    media = dataset.media
    return MediaLimits(media.max_bytes, media.max_pixels, media.max_seconds)


def _keys(batch: pa.RecordBatch) -> pa.Array:
    names = ["query", "positive", "group"]
    names += ["negative"] if "negative" in batch.schema.names else []
    texts = [
        batch[name].cast(pa.binary()).to_pylist()
        if name in batch.schema.names
        else [b""] * len(batch)
        for name in names
    ]
    if "query_medium" in batch.schema.names:
        texts += [
            pc.struct_field(batch[f"{side}_medium"], "digest").cast(pa.binary()).to_pylist()
            for side in SIDES
        ]
    return pa.array([_blake2b(b"\0".join(row)) for row in zip(*texts, strict=True)], pa.string())


def _blake2b(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _groups(rows: pa.Table) -> npt.NDArray[np.int32]:
    return group_ids(_identities(rows), rows["group"] if "group" in rows.column_names else None)


def _identities(rows: pa.Table) -> pa.ChunkedArray:
    """Return what tells positives apart: text, and the bytes beside it if there are any."""
    if "positive_medium" not in rows.column_names:
        return rows["positive"]
    digest_N = pc.struct_field(rows["positive_medium"], "digest")
    return pc.if_else(
        pc.equal(digest_N, ""),
        rows["positive"],
        pc.binary_join_element_wise(rows["positive"], digest_N, "\0"),
    )


def _schema_like(names: Sequence[str]) -> pa.Schema:
    """Return the columns that a pair table must have if it has these of those it may have."""
    given = GIVEN if "negative" in names else ()
    return pa.schema([*SCHEMA, *given, *(MEDIA if "query_medium" in names else ())])


def _hold_out(rows: pa.Table, uri: str, evaluate: EvalSpec) -> tuple[pa.Table, pa.Table]:
    group_N = _groups(rows)
    _check_contrast(group_N, uri)
    size_G = np.bincount(group_N)
    if len(size_G) == 2:
        raise InputError(
            f"{uri} has 2 groups of rows: with one held out, nothing is left to contrast",
            expected="at least 3 different positives",
            remedy="add rows, or set eval_uri of the dataset",
        )
    # A sum does not depend on the order of rows, and a large group is as likely as a small one.
    hash_G = np.zeros(len(size_G), np.uint64)
    np.add.at(hash_G, group_N, _hashes(rows))
    share = min(max(1, round(evaluate.holdout * len(size_G))), len(size_G) - 2)
    chosen = np.argsort(hash_G, kind="stable")[:share]
    fitting = np.searchsorted(np.cumsum(size_G[chosen]), evaluate.max_queries, side="right")
    held_N = np.isin(group_N, chosen[: max(1, fitting)])
    return rows.filter(pa.array(~held_N)), _cap(rows.filter(pa.array(held_N)), evaluate.max_queries)


def _cap(rows: pa.Table, limit: int) -> pa.Table:
    """Keep the ``limit`` rows with the smallest hashes, in their order."""
    kept_N = np.zeros(len(rows), bool)
    kept_N[np.argsort(_hashes(rows), kind="stable")[:limit]] = True
    return rows.filter(pa.array(kept_N))


def _hashes(rows: pa.Table) -> npt.NDArray[np.uint64]:
    """Return the first 64 bits of every row's key."""
    words = np.frombuffer(bytes.fromhex("".join(rows["key"].to_pylist())), ">u8")
    return words[::2].astype(np.uint64)


def _check_contrast(group_N: npt.NDArray[np.int32], uri: str) -> None:
    if group_N.max() == 0:
        raise InputError(
            f"every row of {uri} has the same positive or group: nothing to contrast",
            expected="at least two groups of rows",
            remedy="check 'positive' and 'group' of the dataset",
        )


def _pair_table(rows: pa.Table, group_N: npt.NDArray[np.int32]) -> pa.Table:
    columns = {name: rows[name] for name in SCHEMA.names[:-1]} | {"group": pa.array(group_N)}
    if "negative" in rows.column_names:
        own_N = _negative_groups(_identities(rows), group_N, rows["negative"])
        columns |= {"negative": rows["negative"], "negative_group": pa.array(own_N)}
    if "query_medium" in rows.column_names:
        columns |= {name: rows[name] for name in MEDIA.names}
    return pa.table(columns, schema=_schema_like(list(columns)))


def _negative_groups(
    positive_N: pa.ChunkedArray, group_N: npt.NDArray[np.int32], negative_N: pa.ChunkedArray
) -> npt.NDArray[np.int32]:
    """Return the group that each negative is a positive of, or a number beyond all groups."""
    rows = len(group_N)
    code_X = _codes(pa.chunked_array([*positive_N.chunks, *negative_N.chunks], pa.string()))
    known = code_X[:rows].max(initial=-1) + 1  # positives come first, and have the first codes
    group_of = np.empty(known, np.int32)
    group_of[code_X[:rows]] = group_N
    fresh = group_N.max(initial=-1) + 1 - known
    code_N = code_X[rows:]
    named_N = np.where(code_N < known, group_of[np.minimum(code_N, known - 1)], code_N + fresh)
    return np.asarray(named_N, np.int32)


def _check_groups(table: pa.Table) -> None:
    code_N = _codes(_identities(table))
    group_N = table["group"].to_numpy()
    group_of = np.zeros(code_N.max(initial=-1) + 1, np.int32)
    group_of[code_N] = group_N
    if (group_of[code_N] != group_N).any():
        raise ValueError("rows with the same positive are in different groups")


def _codes(text_N: pa.ChunkedArray) -> npt.NDArray[np.int32]:
    """Give equal texts the same number, from 0, in order of first appearance."""
    # The distinct texts of a large dataset outgrow the 2 GiB that a string array can address.
    encoded = text_N.cast(pa.large_string()).dictionary_encode()
    codes = [chunk.indices.to_numpy() for chunk in encoded.chunks]
    return np.concatenate([np.zeros(0, np.int32), *codes])
