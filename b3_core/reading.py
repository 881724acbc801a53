"""A user's files become pairs: read, their media looked at, checked, grouped, some held out.

    files -> rows -> their media looked at -> keys -> held out by group -> groups -> Split

Everything is chosen by hashes of what rows hold, never by where they stand.

Legend: N rows, G groups.
"""

import hashlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from b3_core.config import DatasetSpec, EvalSpec
from b3_core.errors import InputError
from b3_core.groups import codes, group_ids, identities
from b3_core.inputs import MEDIUM, NO_MEDIUM, PACKED, Packer
from b3_core.machine import cores
from b3_core.media import Look, look_at
from b3_core.media_columns import SIDES, MediaColumns
from b3_core.pairs import (
    GIVEN_MEDIA,
    MEDIA,
    NOBODY,
    SCHEMA,
    SKIPPED,
    PairTable,
    Split,
    limits_of,
    schema_like,
)
from b3_core.progress import Progress, silent
from b3_core.source import media_listing, read_rows

#: Before the text of a query or positive, in MMEB's files, where its image stands.
MMEB_MARK = "<|image_1|>"
#: Of a video, that are looked at where nobody said how many a model will be shown.
FRAMES = (8,)
_LOOKERS = 4  # processes that decode media at most
_UNSEEN = Look("", "")  # of a side without a medium


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
    rows, after those that come first and are in neither table (:func:`held_out_part`), as many as
    fit in ``evaluate.max_queries`` rows, one at least. More rows than that are cut, in the order of
    their hashes; those cut are in neither table.

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
        ``dataset.media.bad`` says to refuse it, all rows to train on form a single group, or all
        that ``dataset.eval_uri`` names are among them.
    """
    with closing(_Reader(dataset, packed, progress)) as reader:
        rows = reader.read(dataset.uri)
        if "lacks" in rows.column_names and pc.all(rows["lacks"]).as_py():
            raise InputError(
                f"no row of {dataset.uri} has a negative",
                expected="some that have",
                remedy="leave negative and negative_image of the dataset out",
            )
        if dataset.eval_uri is None:
            train, heldout = _hold_out(rows, dataset.uri, evaluate)
        else:
            train = rows
            heldout = _cap(reader.read(dataset.eval_uri), evaluate.max_queries)
    rows = pa.concat_tables([train, heldout])
    group_N = _groups(rows)
    _check_contrast(group_N[: len(train)], dataset.uri)
    pairs = _pair_table(rows, group_N)
    split = Split(
        # One chunk, so that how the source was cut shows nowhere in what is saved.
        PairTable(dataset.name, pairs[: len(train)].combine_chunks()),
        PairTable(dataset.name, pairs[len(train) :].combine_chunks()),
        pa.concat_tables(reader.skipped) if reader.skipped else None,
        sum(len(pc.unique(part["row_id"])) for part in reader.skipped),
    )
    if dataset.eval_uri is not None and split.repeated == len(split.heldout):
        raise InputError(
            f"every held-out row of {dataset.eval_uri} is trained on: it is in {dataset.uri} too",
            expected="rows to evaluate on that are not trained on",
            remedy="set eval_uri of the dataset to others, or leave it out: some groups are then "
            "held out",
        )
    return split


class _Reader:
    """Reads the rows of one dataset, and leaves out those whose media are bad.

    Rows have columns row_id, key, query, positive and, where there are, group (text), negative,
    query_medium, positive_medium, negative_medium, and lacks: who came without a negative.
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
        lacking = ["negative"] if dataset.layout == "mmeb" and dataset.media_columns else []
        table = read_rows(uri, columns, self._media(), may_lack=lacking)
        table = table.add_column(0, "row_id", pa.array(np.arange(len(table))))
        if dataset.layout == "mmeb":
            for name in {"query", "positive", "negative"} & set(table.column_names):
                table = _set(table, name, _unmarked(table[name]))
        if dataset.media_columns:
            table = self._looked_at(table, uri)
        if lacking and "negative" in table.column_names:
            table = _filled(table)
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
        place_of = {side: table[f"{side}_medium"].to_pylist() for side in _sides(table)}
        places = list(
            dict.fromkeys(
                tuple(place.values())
                for side in place_of.values()
                for place in side
                if place["kind"]
            )
        )
        looks = dict(zip(places, self._looks(places), strict=True))
        fault_of = {}
        for side, wanted in place_of.items():
            found = [looks.get(tuple(place.values()), _UNSEEN) for place in wanted]
            fault_of[side] = [look.fault for look in found]
            named = [
                {**place, "digest": look.digest} for place, look in zip(wanted, found, strict=True)
            ]
            table = _set(table, f"{side}_medium", pa.chunked_array([pa.array(named, MEDIUM)]))
        bad = [
            {"row_id": row, "side": side, "file": place["file"], "fault": fault}
            for side in place_of
            for row, (place, fault) in enumerate(zip(place_of[side], fault_of[side], strict=True))
            if fault
        ]
        return self._without(table, bad, uri) if bad else table

    def _looks(self, places: Sequence[tuple[Any, ...]]) -> list[Look]:
        """Look at media in files and packed ones, each where they are."""
        lookers = min(_LOOKERS, cores())
        limits = limits_of(self._dataset)
        found: dict[tuple[Any, ...], Look] = {}
        inside = [place for place in places if place[1] == ""]
        outside = [place for place in places if place[1] != ""]
        assert self._packed is not None
        for root, part, named in (
            (self._dataset.media_root, outside, outside),
            (str(self._packed.parent), inside, [(k, PACKED, *at) for k, _, *at in inside]),
        ):
            for frames in self._dataset.media.frames or FRAMES:
                # A picture is looked at once, and so is what was found bad.
                todo = [
                    (place, each)
                    for place, each in zip(part, named, strict=True)
                    if place not in found or (each[0] == "video" and not found[place].fault)
                ]
                if todo:
                    looks = look_at(
                        root,
                        [each for _, each in todo],
                        limits=limits,
                        workers=lookers,
                        frames=frames,
                        progress=self._progress,
                    )
                    found |= dict(zip((place for place, _ in todo), looks, strict=True))
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
    return pc.utf8_trim_whitespace(pc.replace_substring(text_N, MMEB_MARK, ""))


def _sides(rows: pa.Table | pa.RecordBatch) -> list[str]:
    """Return the sides that have a column of media."""
    return [side for side in (*SIDES, "negative") if f"{side}_medium" in rows.schema.names]


def _filled(table: pa.Table) -> pa.Table:
    """Put its own positive in the place of the negative that a row lacks, and mark such rows."""
    if "negative_medium" not in table.column_names:
        none = pa.array([NO_MEDIUM] * len(table), MEDIUM)
        table = table.append_column("negative_medium", none)
    no_medium_N = pc.equal(pc.struct_field(table["negative_medium"], "kind"), "")
    lacks_N = pc.and_(no_medium_N, pc.equal(table["negative"], ""))
    for name in ("", "_medium"):
        filled = pc.if_else(lacks_N, table[f"positive{name}"], table[f"negative{name}"])
        table = _set(table, f"negative{name}", filled)
    return table.append_column("lacks", lacks_N)


def _keys(batch: pa.RecordBatch) -> pa.Array:
    names = ["query", "positive", "group"]
    names += ["negative"] if "negative" in batch.schema.names else []
    texts = [
        batch[name].cast(pa.binary()).to_pylist()
        if name in batch.schema.names
        else [b""] * len(batch)
        for name in names
    ]
    texts += [
        pc.struct_field(batch[f"{side}_medium"], "digest").cast(pa.binary()).to_pylist()
        for side in _sides(batch)
    ]
    return pa.array([_blake2b(b"\0".join(row)) for row in zip(*texts, strict=True)], pa.string())


def _blake2b(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _groups(rows: pa.Table) -> npt.NDArray[np.int32]:
    return group_ids(identities(rows), rows["group"] if "group" in rows.column_names else None)


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
    order_G = np.argsort(hash_G, kind="stable")
    part = held_out_part(len(size_G), evaluate, uri)
    chosen = order_G[part]
    # One group that is more than there may be would end the sum, with next to nothing held out.
    small = chosen[size_G[chosen] <= evaluate.max_queries]
    chosen = small if len(small) else chosen[:1]
    fitting = np.searchsorted(np.cumsum(size_G[chosen]), evaluate.max_queries, side="right")
    held_N = np.isin(group_N, chosen[: max(1, fitting)])
    train_N = ~(held_N | np.isin(group_N, order_G[: part.start]))
    held = _cap(rows.filter(pa.array(held_N)), evaluate.max_queries)
    return rows.filter(pa.array(train_N)), held


def held_out_part(groups: int, evaluate: EvalSpec, uri: str) -> slice:
    """Say which of three groups or more, in the order of their hashes, are held out.

    Those before them are kept back: the share ``evaluate.kept_back``, and for a trial what a run
    holds out after it, counted as the run counts it.

    Raises
    ------
    InputError
        A run's part leaves less than a trial needs: one group to hold out, and two to contrast.
    """
    back = 0
    if evaluate.kept_back:
        back = min(_share(evaluate.kept_back, groups), groups - 3)
    if evaluate.trial:
        back += _share(evaluate.holdout, groups - back)
        if groups - back < 3:
            raise InputError(
                f"{uri} has {groups} groups of rows, of which trials may use {groups - back}: the "
                "others are for the report",
                expected="at least 3 for trials",
                remedy="add rows, lower evaluate.holdout and evaluate.kept_back, or set eval_uri "
                "of the dataset",
            )
    return slice(back, back + _share(evaluate.holdout, groups - back))


def _share(share: float, groups: int) -> int:
    """Return how many of some groups a share is: one at least, and all but two at most."""
    return min(max(1, round(share * groups)), max(1, groups - 2))


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
        own_N = _negative_groups(identities(rows), group_N, identities(rows, "negative"))
        if "lacks" in rows.column_names:
            own_N[rows["lacks"].to_numpy()] = NOBODY
        columns |= {"negative": rows["negative"], "negative_group": pa.array(own_N)}
    there = [name for name in (*MEDIA.names, *GIVEN_MEDIA.names) if name in rows.column_names]
    columns |= {name: rows[name] for name in there}
    return pa.table(columns, schema=schema_like(list(columns)))


def _negative_groups(
    positive_N: pa.ChunkedArray, group_N: npt.NDArray[np.int32], negative_N: pa.ChunkedArray
) -> npt.NDArray[np.int32]:
    """Return the group that each negative is a positive of, or a number beyond all groups."""
    rows = len(group_N)
    code_X = codes(pa.chunked_array([*positive_N.chunks, *negative_N.chunks], pa.string()))
    known = code_X[:rows].max(initial=-1) + 1  # positives come first, and have the first codes
    group_of = np.empty(known, np.int32)
    group_of[code_X[:rows]] = group_N
    fresh = group_N.max(initial=-1) + 1 - known
    code_N = code_X[rows:]
    named_N = np.where(code_N < known, group_of[np.minimum(code_N, known - 1)], code_N + fresh)
    return np.asarray(named_N, np.int32)
