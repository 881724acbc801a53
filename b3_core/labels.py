"""The graph of a classification dataset: rows attract rows of the labels that look like their own.

There a row's positive is a label's text and the rows of one label form a group, so ranks [p, p+m)
would lie inside a few large groups. The method's rule for such data (arXiv 2505.11293) knows no p
and no m; it is about labels:

    queries, label vectors -> rank_labels: the first 30 % of the other labels, row by row
    LabelRanks             -> link_labels: rows i and j, each with its label near the other's query
    LabelRanks, communities -> describe_labels: how many partners of a row are of that kind

A row is *near* a label that is among the first ``kept`` in its ranking of labels; rows i and j are
*eligible* for one another if i is near j's label and j is near i's. The rows near a label are its
*fans*, so the rows eligible for i are the fans of i's label, less those of labels i is not near.

Nothing here is N x N, and what is N x L is done in blocks, all but one array that is kept: which
labels each row is near, a bit each. A list of the near labels would take 0.3 L numbers of 16 bits,
five times as much, and would have to be searched to answer "is j near my label?"; a bit is looked
up. That is 125 MB for a million rows and a thousand labels.

Legend: N rows, D width of a vector, L labels, L8 bytes that hold L bits, B rows of one block,
F fans of one label, X draws of one block.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy.sparse import coo_array

from b3_core.artifacts import Artifact, Draft
from b3_core.errors import InputError
from b3_core.graph import CsrGraph
from b3_core.neighbours import finite
from b3_core.progress import Progress, silent

VERSION = 2

#: CPM's resolution in units of the graph's own density. Row by row, as graphs of ranks have it, it
#: would lie above every density there is: a row is linked to far more rows than a community holds,
#: and Leiden would find none (docs/decisions.md, "Leiden on labels").
RESOLUTION = 5.0

_CELLS = 1 << 21  # numbers in one array of a block: 16 MB in float64
_SET_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype="u1")


@dataclass(frozen=True, eq=False)
class LabelRanks:
    """Which labels each row ranks first, its own left out.

    Raises
    ------
    ValueError
        Shapes or types differ from those below, a label has no row, a row is near its own label,
        is not near exactly ``kept`` labels, or a bit beyond the last label is set.
    """

    near_NL8: npt.NDArray[np.uint8]
    """Bit l of row i: label l is among the first ``kept`` of row i. As ``numpy.packbits`` packs."""
    label_N: npt.NDArray[np.int32]
    """Label of every row, 0 to L - 1."""
    kept: int
    """Near labels of every row."""

    def __post_init__(self) -> None:
        near_NL8, label_N = self.near_NL8, self.label_N
        if label_N.dtype != np.int32 or label_N.ndim != 1 or not label_N.size:
            raise ValueError(f"labels are {label_N.dtype} of shape {label_N.shape}, not int32 (N,)")
        if label_N.min() < 0 or not np.bincount(label_N).all():
            raise ValueError("labels do not run from 0 to L - 1")
        shape = (len(label_N), -(-self.labels // 8))
        if near_NL8.dtype != np.uint8 or near_NL8.shape != shape:
            raise ValueError(f"{near_NL8.dtype} of shape {near_NL8.shape} is no uint8 {shape}")
        if (near_NL8[:, -1] & (0xFF >> ((self.labels - 1) % 8 + 1))).any():
            raise ValueError(f"a row is near a label beyond the last of {self.labels}")
        own_N = near_NL8[np.arange(len(label_N)), label_N >> 3] >> (7 - (label_N & 7)) & 1
        if own_N.any():
            raise ValueError("a row is near its own label")
        for row_B in _blocks(np.arange(len(label_N)), shape[1]):
            if (_SET_BITS[near_NL8[row_B]].sum(axis=1) != self.kept).any():
                raise ValueError(f"a row is not near exactly {self.kept} labels")

    @property
    def labels(self) -> int:
        """L."""
        return int(self.label_N.max()) + 1

    def near(self, row_B: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """Unpack some rows: bool (B, L)."""
        return np.unpackbits(self.near_NL8[row_B], axis=1, count=self.labels).view(np.bool_)

    def save(self, draft: Draft) -> None:
        """Write ``near.npy``, ``label.npy`` and ``labels.json``."""
        np.save(draft.path("near.npy"), self.near_NL8)
        np.save(draft.path("label.npy"), self.label_N)
        draft.write_json("labels.json", {"kept": self.kept})

    @classmethod
    def load(cls, artifact: Artifact) -> Self:
        """Read the three files back."""
        near_NL8, label_N = (
            np.load(artifact.path(name), allow_pickle=False) for name in ("near.npy", "label.npy")
        )
        return cls(near_NL8, label_N, **json.loads(artifact.path("labels.json").read_bytes()))


def rank_labels(
    query_ND: npt.NDArray[np.float32],
    positive_ND: npt.NDArray[np.float32],
    *,
    group_N: npt.NDArray[np.int32],
    share: float = 0.3,
    progress: Progress = silent,
) -> LabelRanks:
    """Find each row's first ``share`` of the other labels, by inner product with its query.

    A label's vector is the positive vector that its rows share. Where they differ (one label in
    several wordings) it is the mean over its rows, scaled to unit norm and rounded to float16 as
    stored vectors are.

    Parameters
    ----------
    query_ND, positive_ND
        Finite vectors, row by row; of unit norm, and of values that float16 holds, their fp64
        products carry no rounding at all: no thread count and no block size changes a rank.
    group_N
        Label of every row, any numbers; label l of the result is the l-th smallest of them.
    share
        max(1, round(share (L - 1))) labels are kept; ties go to the smaller label.
    progress
        Told how many rows are final.

    Returns
    -------
    LabelRanks
        N rows.

    Raises
    ------
    InputError
        There are fewer than two labels, or a vector is not finite (the row is named).
    ValueError
        The three arrays are not of N rows, or ``share`` is not in (0, 1].
    """
    rows = len(query_ND)
    if query_ND.shape != positive_ND.shape or group_N.shape != (rows,) or not 0 < share <= 1:
        raise ValueError(
            f"cannot rank labels for queries {query_ND.shape}, positives {positive_ND.shape}, "
            f"groups {group_N.shape} and share {share}"
        )
    group_L, first_L, inverse_N = np.unique(group_N, return_index=True, return_inverse=True)
    if len(group_L) < 2:
        raise InputError(
            f"the {rows} rows have {len(group_L)} labels: nothing to contrast",
            expected="at least two labels",
            remedy="check 'positive' and 'group' of the dataset",
        )
    query_ND, positive_ND = finite(query_ND, "query"), finite(positive_ND, "positive")
    label_N = inverse_N.astype(np.int32)
    kept = max(1, round(share * (len(group_L) - 1)))
    vector_DL = _label_vectors(positive_ND, label_N, first_L).T.astype(np.float64)
    near_NL8 = np.empty((rows, -(-len(group_L) // 8)), np.uint8)
    done = 0
    for row_B in _blocks(np.arange(rows), sum(vector_DL.shape)):
        score_BL = query_ND[row_B].astype(np.float64) @ vector_DL
        score_BL[np.arange(len(row_B)), label_N[row_B]] = -np.inf
        near_NL8[row_B] = np.packbits(_first(score_BL, kept), axis=1)
        done += len(row_B)
        progress(done, rows)
    return LabelRanks(near_NL8, label_N, kept)


def link_labels(ranks: LabelRanks, *, edges: int = 100, rng: np.random.Generator) -> CsrGraph:
    """Link eligible rows: a random part of the graph, which whole has too many edges to be built.

    Each row draws ``edges`` of the rows eligible for it, all sets of that size alike (all of them
    where there are no more than that); an edge is there if either end drew it. An edge between
    rows with s and t eligible rows, neither below ``edges``, is there with probability
    1 - (1 - edges / s) (1 - edges / t), whatever their labels.

    Nothing is rejected and drawn again: label by label the fans are listed, sorted by their own
    label, so that running sums over labels number a row's eligible rows, and the row behind a
    number is found by bisection. Time is O(N (L + edges log L)), memory that of the graph.

    Parameters
    ----------
    edges
        Draws a row.
    rng
        Gives the draws, in the order of labels and of rows in a label.

    Returns
    -------
    CsrGraph
        N rows, possibly without an edge; at most 2 N ``edges`` directed edges of weight 1.

    Raises
    ------
    ValueError
        ``edges`` is not positive.
    """
    if edges < 1:
        raise ValueError(f"a row cannot draw {edges} edges")
    rows = len(ranks.label_N)
    row_Xs, other_Xs = [], []
    seen_N = np.full(rows, -1, np.int32)
    for fans in _fans(ranks):
        for row_B in _blocks(fans.own_G, ranks.labels + min(edges, len(fans.row_F))):
            stop_BL = np.cumsum(np.where(ranks.near(row_B), fans.size_L, 0), axis=1)
            wanted_B = np.minimum(stop_BL[:, -1], edges)
            draws = _Draws(row_B, wanted_B, stop_BL, _chances(stop_BL[:, -1], wanted_B, rng))
            row_Xs.append(np.repeat(row_B, wanted_B))
            other_Xs.append(_take(draws, fans, seen_N))
    row_X, other_X = np.concatenate(row_Xs), np.concatenate(other_Xs)
    del row_Xs, other_Xs
    drawn_NN = coo_array((np.ones(len(row_X), bool), (row_X, other_X)), shape=(rows, rows)).tocsr()
    del row_X, other_X
    return CsrGraph.of(drawn_NN.maximum(drawn_NN.T))


def resolution(attract: CsrGraph) -> float:
    """Return the CPM resolution for a graph that :func:`link_labels` made."""
    return RESOLUTION * float(attract.weight.sum(dtype=np.float64)) / max(attract.rows, 1) ** 2


def describe_labels(community_N: npt.NDArray[np.int32], ranks: LabelRanks) -> dict[str, float]:
    """Count the partners of a row: the rows it shares a community with.

    Compare with the same for ``rng.permutation(community_N)``: the same sizes, filled at random.

    Parameters
    ----------
    community_N
        Community of every row; -1 where a row is in none.

    Returns
    -------
    dict
        ``window``: partners whose label the row is near; ``mutual``: partners eligible for it;
        ``same_group``: partners of its own label. Means over the rows that have a community.

    Raises
    ------
    ValueError
        ``community_N`` is not of N rows, or no row has a community.
    """
    if community_N.shape != ranks.label_N.shape or (community_N < 0).all():
        raise ValueError(f"communities of shape {community_N.shape} for {ranks.label_N.shape} rows")
    order_X = np.argsort(community_N, kind="stable")
    order_X = order_X[community_N[order_X] >= 0]
    start_C = np.flatnonzero(np.diff(community_N[order_X], prepend=-1))
    bound_C = np.append(start_C, len(order_X))  # one more than communities
    window, mutual, same = _partners(order_X, bound_C, ranks.near_NL8, ranks.label_N)
    counts = {"window": window, "mutual": mutual, "same_group": same}
    return {name: count / len(order_X) for name, count in counts.items()}


class _Fans(NamedTuple):
    """One label: its rows, and the rows that are near it."""

    own_G: npt.NDArray[np.int32]  # the label's rows
    row_F: npt.NDArray[np.int32]  # fans, sorted by their own label
    size_L: npt.NDArray[np.int64]  # fans of each label
    stop_L: npt.NDArray[np.int64]  # where they end in row_F


class _Draws(NamedTuple):
    """A block of rows of one label, and the chances they were given."""

    row_B: npt.NDArray[np.int32]
    wanted_B: npt.NDArray[np.int64]
    stop_BL: npt.NDArray[np.int64]  # eligible rows, summed up over labels
    chance_X: npt.NDArray[np.int64]  # wanted_B of them, row after row


def _fans(ranks: LabelRanks) -> Iterator[_Fans]:
    """Go through the labels."""
    own_LG = _rows_of_labels(ranks.label_N)
    order_N = np.concatenate(own_LG)
    for label, own_G in enumerate(own_LG):
        if label % 8 == 0:  # a column of bytes, gathered once for its eight labels
            byte_N = ranks.near_NL8[order_N, label // 8]
        row_F = order_N[np.flatnonzero(byte_N & (0x80 >> label % 8))]
        size_L = np.bincount(ranks.label_N[row_F], minlength=ranks.labels)
        yield _Fans(own_G, row_F, size_L, np.cumsum(size_L))


def _chances(
    total_B: npt.NDArray[np.int64], wanted_B: npt.NDArray[np.int64], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw what Floyd's method asks for: turn t of w in n gets one of 0 to n - w + t, t from 0.

    Bentley and Floyd, A sample of brilliance, Communications of the ACM 30(9), 1987. One number a
    turn, so that the stream does not depend on where blocks end.
    """
    first_B = np.cumsum(wanted_B) - wanted_B
    last_X = np.arange(wanted_B.sum()) + np.repeat(total_B - wanted_B - first_B, wanted_B)
    chance_X: npt.NDArray[np.int64] = rng.integers(last_X, endpoint=True)
    return chance_X


@njit(cache=True)  # type: ignore[untyped-decorator]
def _take(draws: _Draws, fans: _Fans, seen_N: Any) -> Any:
    """Turn chances into distinct eligible rows: (X,) int32.

    ``seen_N`` is scratch: which row took the n-th of its eligible rows last.
    """
    other_X = np.empty(len(draws.chance_X), np.int32)
    x = 0
    for b in range(len(draws.row_B)):
        stop_L = draws.stop_BL[b]
        for left in range(draws.wanted_B[b], 0, -1):
            nth = draws.chance_X[x]
            if seen_N[nth] == draws.row_B[b]:
                nth = stop_L[-1] - left  # the last that this turn could get: nobody had it before
            seen_N[nth] = draws.row_B[b]
            label = np.searchsorted(stop_L, nth, side="right")
            other_X[x] = fans.row_F[fans.stop_L[label] - (stop_L[label] - nth)]
            x += 1
    return other_X


@njit(cache=True)  # type: ignore[untyped-decorator]
def _partners(
    row_X: npt.NDArray[np.int64], bound_C: npt.NDArray[np.int64], near_NL8: Any, label_N: Any
) -> tuple[int, int, int]:
    """Go through the ordered pairs inside communities: near, near both ways, of one label."""
    window, mutual, same = 0, 0, 0
    for c in range(len(bound_C) - 1):
        members = row_X[bound_C[c] : bound_C[c + 1]]
        for i in members:
            for j in members:
                a, b = label_N[i], label_N[j]
                there = near_NL8[i, b >> 3] >> (7 - (b & 7)) & 1
                window += there
                mutual += there & near_NL8[j, a >> 3] >> (7 - (a & 7))
                same += i != j and a == b
    return window, mutual, same


def _first(score_BL: npt.NDArray[np.float64], kept: int) -> npt.NDArray[np.bool_]:
    """Mark each row's ``kept`` best labels, the smaller label first where scores are equal."""
    place = score_BL.shape[1] - kept
    least_B1 = np.partition(score_BL, place, axis=1)[:, place, None]
    above_BL, level_BL = score_BL > least_B1, score_BL == least_B1
    room_B1 = kept - above_BL.sum(axis=1, keepdims=True)
    tied_BL = level_BL & (np.cumsum(level_BL, axis=1, dtype=np.int32) <= room_B1)
    first_BL: npt.NDArray[np.bool_] = above_BL | tied_BL
    return first_BL


def _label_vectors(
    positive_ND: npt.NDArray[np.float32],
    label_N: npt.NDArray[np.int32],
    first_L: npt.NDArray[np.intp],
) -> npt.NDArray[np.float32]:
    """Return the vectors of labels, (L, D), whose first rows are ``first_L``."""
    vector_LD = positive_ND[first_L]
    mixed_L = np.zeros(len(first_L), bool)
    for row_B in _blocks(np.arange(len(label_N)), positive_ND.shape[1]):
        differs_B = (positive_ND[row_B] != vector_LD[label_N[row_B]]).any(axis=1)
        mixed_L[label_N[row_B[differs_B]]] = True
    own_LG = _rows_of_labels(label_N)
    for label in np.flatnonzero(mixed_L):
        sum_D = positive_ND[own_LG[label]].sum(axis=0, dtype=np.float64)
        norm = np.sqrt(np.square(sum_D).sum())
        # Wordings that cancel one another out have no direction: zero scores alike everywhere.
        vector_LD[label] = (sum_D / (norm or 1.0)).astype(np.float16)
    return vector_LD


def _rows_of_labels(label_N: npt.NDArray[np.int32]) -> list[npt.NDArray[np.int32]]:
    order_N = np.argsort(label_N, kind="stable").astype(np.int32)
    return np.split(order_N, np.cumsum(np.bincount(label_N))[:-1])


def _blocks(row_N: npt.NDArray[Any], width: int) -> Iterator[npt.NDArray[Any]]:
    size = max(_CELLS // width, 1)
    for start in range(0, len(row_N), size):
        yield row_N[start : start + size]
