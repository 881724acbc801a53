"""What meets in a batch although it is the same, and which edges of the graph batches keep.

    the pairs' file, part by part -> groups, texts as numbers, the texts of a few rows
    batches, groups, texts        -> rows that meet a duplicate

Legend: N rows, S batches, B rows of a batch, E directed edges.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from b3_core.artifacts import Artifact
from b3_core.pairs import open_rows
from b3_core.report.meetings import Counts, Rows
from b3_core.report.stored import Edges

_PART = 1 << 14  # rows read together
_SLOTS = 1 << 20  # slots looked at together
_CHUNK = 1 << 22  # edges


@dataclass(frozen=True, eq=False)
class Texts:
    """The rows of a dataset, as far as a report needs them."""

    group_N: npt.NDArray[np.int32]
    query_N: Counts
    """Queries by content, letters' case and spaces aside: the same number, the same text."""
    positive_N: Counts
    shown: dict[int, dict[str, Any]]
    """Row -> its columns, of the rows that were asked for."""


def read_texts(pairs: Artifact, wanted: Sequence[int]) -> Texts:
    """Read a table of pairs once, and keep of it numbers, and the texts of ``wanted`` rows.

    Raises
    ------
    ValueError
        The file is no table of pairs.
    """
    wanted_N = np.unique(np.asarray(wanted, np.int64))
    groups: list[npt.NDArray[np.int32]] = []
    hashes: dict[str, list[Counts]] = {"query": [], "positive": []}
    shown: dict[int, dict[str, Any]] = {}
    start = 0
    with open_rows(pairs.path("train.parquet")) as rows:
        there = set(rows.schema_arrow.names)
        media = [name for name in ("query_medium", "positive_medium") if name in there]
        columns = ["row_id", "query", "positive", "group", *media]
        for part in rows.iter_batches(_PART, columns=columns):
            groups.append(part["group"].to_numpy())
            for side, found in hashes.items():
                name = f"{side}_medium"
                beside = part[name].to_pylist() if name in media else [None] * len(part)
                found.append(_hashes(part[side].to_pylist(), beside))
            low, high = np.searchsorted(wanted_N, [start, start + len(part)])
            for row in wanted_N[low:high].tolist():
                shown[row] = {name: part[name][row - start].as_py() for name in columns}
            start += len(part)
    codes = {
        side: np.unique(np.concatenate([np.zeros(0, np.int64), *found]), return_inverse=True)[1]
        for side, found in hashes.items()
    }
    empty = np.zeros(0, np.int32)
    return Texts(np.concatenate([empty, *groups]), codes["query"], codes["positive"], shown)


def _hashes(texts: Sequence[str], media: Sequence[Any]) -> Counts:
    found = np.empty(len(texts), np.int64)
    for place, (text, medium) in enumerate(zip(texts, media, strict=True)):
        plain = " ".join(text.casefold().split())
        beside = medium["digest"] if medium else ""
        digest = hashlib.blake2b(f"{plain}\0{beside}".encode(), digest_size=8).digest()
        found[place] = int.from_bytes(digest, "little", signed=True)
    return found


def meeting(row_SB: Rows, code_N: npt.NDArray[Any], group_N: npt.NDArray[Any] | None = None) -> int:
    """Count the slots whose row meets another row of its code in its batch.

    Parameters
    ----------
    row_SB
        Rows of every batch.
    code_N
        Small numbers, such as groups.
    group_N
        If given, only a row of another group counts.
    """
    step = max(_SLOTS // max(row_SB.shape[1], 1), 1)
    count = 0
    for start in range(0, len(row_SB), step):
        row_XB = row_SB[start : start + step]
        batch_X1 = np.arange(len(row_XB), dtype=np.int64)[:, None]
        same_X, size = _sizes((batch_X1 << 32 | code_N[row_XB]).ravel())
        if group_N is None:
            count += int((size[same_X] > 1).sum())
        else:
            both_X, part = _sizes(same_X.astype(np.int64) << 32 | group_N[row_XB].ravel())
            count += int((size[same_X] > part[both_X]).sum())
    return count


def _sizes(key_X: Counts) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return which of the distinct keys each is, and how often each of those is there."""
    _, place_X, size = np.unique(key_X, return_inverse=True, return_counts=True)
    return place_X, size


def repeats(row_SB: Rows, texts: Texts) -> dict[str, Any]:
    """Count duplicates that meet in a batch, over all slots.

    Returns
    -------
    dict
        ``slots``; ``same_group``: slots whose row meets one of its own group, which the loss masks;
        ``same_query`` and ``same_positive``: that meet the text in another group, which it does not
        (letters' case and spaces aside); and the same of the dataset itself: ``rows_in_groups``,
        rows whose group has another row, and ``repeated_queries``, ``repeated_positives``.
    """
    return {
        "slots": int(row_SB.size),
        "same_group": meeting(row_SB, texts.group_N),
        "same_query": meeting(row_SB, texts.query_N, texts.group_N),
        "same_positive": meeting(row_SB, texts.positive_N, texts.group_N),
        "rows_in_groups": _repeated(texts.group_N),
        "repeated_queries": _repeated(texts.query_N),
        "repeated_positives": _repeated(texts.positive_N),
    }


def _repeated(code_N: npt.NDArray[Any]) -> int:
    place_N, size = _sizes(code_N.astype(np.int64))
    return int((size[place_N] > 1).sum())


def kept(edges: Edges, label_N: npt.NDArray[np.int32]) -> float | None:
    """Return the share of edges whose two rows have one label; -1 is no label. None: no edge."""
    total = len(edges.indices_E)
    if not total:
        return None
    inside = 0
    for start in range(0, total, _CHUNK):
        stop = min(start + _CHUNK, total)
        row_X = np.searchsorted(edges.indptr, np.arange(start, stop), side="right") - 1
        label_X = label_N[row_X]
        inside += int(((label_X == label_N[edges.indices_E[start:stop]]) & (label_X >= 0)).sum())
    return inside / total
