"""The rows: (query, positive) pairs, their groups, and which of them are held out.

    files -> rows with keys -> held out by group -> groups -> PairTable (train, heldout)

A *group* holds the rows whose positives answer one another's queries: rows with the same positive
text, and rows with the same value in the group column if there is one. No row is a negative of
another row of its group, and no group is both trained on and held out of the same files.

Everything is chosen by hashes of what rows hold, never by where they stand.

Legend: N rows, G groups.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from b3_core.artifacts import Artifact, Draft
from b3_core.config import DatasetSpec, EvalSpec
from b3_core.errors import InputError
from b3_core.source import read_texts, source_digest

__all__ = [
    "SCHEMA",
    "VERSION",
    "PairTable",
    "RowGroups",
    "Split",
    "edited_rows",
    "group_ids",
    "open_rows",
    "read_keys",
    "read_split",
    "rows_before",
    "source_digest",
]

VERSION = 1

SCHEMA = pa.schema(
    [
        ("row_id", pa.int64()),  # position in the source: files in sorted order, then rows
        ("key", pa.string()),  # hex blake2b-128 of query \0 positive \0 group-column value, and
        # \0 negative where rows came with one
        ("query", pa.string()),
        ("positive", pa.string()),
        ("group", pa.int32()),
    ]
)


#: What triplets have besides: a hard negative's text; and the group whose positive that is, or a
#: number beyond all groups, the same for the same text.
GIVEN = pa.schema([("negative", pa.string()), ("negative_group", pa.int32())])
_TRIPLETS = pa.schema([*SCHEMA, *GIVEN])


@dataclass(frozen=True, eq=False)
class PairTable:
    """Rows of one dataset; a *row* anywhere else is a position in this table.

    Raises
    ------
    ValueError
        The columns are not ``SCHEMA``, with ``GIVEN`` or without; a value is null; or a positive
        text is in two groups.
    """

    dataset: str
    table: pa.Table

    def __post_init__(self) -> None:
        schema = _TRIPLETS if self.has_negatives else SCHEMA
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


def open_rows(file: Path) -> pq.ParquetFile:
    """Open a file that :meth:`PairTable.save` wrote, to read it part by part.

    Raises
    ------
    ValueError
        The columns are not ``SCHEMA``, or the file is no parquet.
    """
    opened = pq.ParquetFile(file)
    names = opened.schema_arrow.names
    if not any(opened.schema_arrow.equals(schema) for schema in (SCHEMA, _TRIPLETS)):
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


def read_split(dataset: DatasetSpec, evaluate: EvalSpec) -> Split:
    """Read a dataset, check it, form its groups and hold rows out.

    Held-out rows come from ``dataset.eval_uri`` if there is one. Otherwise a share
    ``evaluate.holdout`` of the groups is held out: whole groups in the order of a hash of their
    rows, as many as fit in ``evaluate.max_queries`` rows, one at least. More rows than that are
    cut, in the order of their hashes; those cut are in neither table.

    Returns
    -------
    Split
        Exact duplicates are kept. Group ids count up in order of first appearance, train first.

    Raises
    ------
    InputError
        The files cannot be used (see :func:`b3_core.source.read_texts`), or all rows to train on
        form a single group.
    """
    rows = _read_rows(dataset, dataset.uri)
    if dataset.eval_uri is None:
        train, heldout = _hold_out(rows, dataset.uri, evaluate)
    else:
        train = rows
        heldout = _cap(_read_rows(dataset, dataset.eval_uri), evaluate.max_queries)
    rows = pa.concat_tables([train, heldout])
    group_N = _groups(rows)
    _check_contrast(group_N[: len(train)], dataset.uri)
    pairs = _pair_table(rows, group_N)
    return Split(
        # One chunk, so that how the source was cut shows nowhere in what is saved.
        PairTable(dataset.name, pairs[: len(train)].combine_chunks()),
        PairTable(dataset.name, pairs[len(train) :].combine_chunks()),
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


def _read_rows(dataset: DatasetSpec, uri: str) -> pa.Table:
    """Return columns row_id, key, query, positive and, where there are, group (text), negative."""
    columns = {
        role: column
        for role in ("query", "positive", "group", "negative")
        if (column := getattr(dataset, role)) is not None
    }
    table = read_texts(uri, columns)
    keys = pa.chunked_array([_keys(batch) for batch in table.to_batches()], pa.string())
    table = table.add_column(0, "key", keys)
    return table.add_column(0, "row_id", pa.array(np.arange(len(table))))


def _keys(batch: pa.RecordBatch) -> pa.Array:
    names = [
        "query",
        "positive",
        "group",
        *(["negative"] if "negative" in batch.schema.names else []),
    ]
    texts = [
        batch[name].cast(pa.binary()).to_pylist()
        if name in batch.schema.names
        else [b""] * len(batch)
        for name in names
    ]
    return pa.array([_blake2b(b"\0".join(row)) for row in zip(*texts, strict=True)], pa.string())


def _blake2b(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _groups(rows: pa.Table) -> npt.NDArray[np.int32]:
    return group_ids(rows["positive"], rows["group"] if "group" in rows.column_names else None)


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
    columns = [*(rows[name] for name in SCHEMA.names[:-1]), pa.array(group_N)]
    if "negative" not in rows.column_names:
        return pa.table(columns, schema=SCHEMA)
    own_N = _negative_groups(rows["positive"], group_N, rows["negative"])
    return pa.table([*columns, rows["negative"], pa.array(own_N)], schema=_TRIPLETS)


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
    code_N = _codes(table["positive"])
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
