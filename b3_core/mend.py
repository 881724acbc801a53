"""Communities of an earlier state of the rows, mended where rows came or went.

    labels of then, where each row was -> seat:   rows that are still there stay where they are, but
                                                  for edited ones that are tied more elsewhere
                                       -> settle: the others into the holes, where they tie most
                                       -> swap:   exchanges among the communities that changed,
                                                  the one each of the others is tied to most, and
                                                  more that they are tied to, up to a share
                                       -> Partition

All other communities keep their rows, so that batches built on them change as little as the data.

Legend: N rows, O rows of then, L loose rows (fresh, or of a community that was given up) or others,
C communities, X rows of the communities that take part in exchanges.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from b3_core.balance import moved, objective, settle
from b3_core.communities import Labels, Partition, community_sizes
from b3_core.config import MiningSpec
from b3_core.graph import CsrGraph
from b3_core.progress import Progress, silent
from b3_core.swap import Net, refine

VERSION = 2

# Share of the communities that take part in exchanges; more, if more lost or gained a row, or are
# what a fresh row is tied to most.
OPEN_SHARE = 0.14


@dataclass(frozen=True, eq=False)
class Mended:
    """Communities of now, and how many of them differ from those of then."""

    partition: Partition
    touched: int
    """Communities whose rows are not those of one community of then; edited rows are the same."""


def mend(
    then_O: Labels,
    before_N: npt.NDArray[np.int64],
    *,
    edited_N: npt.NDArray[np.bool_],
    attract: CsrGraph,
    repel: CsrGraph | None,
    group_N: npt.NDArray[np.int32],
    spec: MiningSpec,
    rng: np.random.Generator,
    progress: Progress = silent,
) -> Mended:
    """Make communities of exactly ``spec.k`` rows that differ little from those of then.

    Parameters
    ----------
    then_O
        Communities of then, all of ``spec.k`` rows but the last.
    before_N
        Where each row was; -1 where it is fresh.
    edited_N
        Rows that were there, but are not what they were. They begin where they are unless they are
        tied more to another community; then they are as fresh ones.
    attract, repel, group_N, spec, rng, progress
        As :func:`b3_core.balance.balance` has them.

    Raises
    ------
    ValueError
        Rows, groups and graphs are not of the same N rows, or a row was beyond those of then.
    """
    rows = {
        len(before_N),
        len(group_N),
        attract.rows,
        attract.rows if repel is None else repel.rows,
    }
    if len(rows) > 1 or before_N.max(initial=-1) >= len(then_O):
        raise ValueError(f"rows, groups and graphs are of {sorted(rows)} rows")
    net = Net.of(attract, repel, group_N=group_N, repulsion=spec.repulsion)
    kept_N = before_N >= 0
    was_N = np.where(kept_N, then_O[before_N], -1)
    label_N, free_C = _seat(was_N, net, spec.k)
    _unseat(net, label_N, free_C, np.flatnonzero(edited_N))
    loose_L = np.flatnonzero(label_N < 0)
    open_C = free_C > 0
    settle(net, label_N, free_C, loose_L)
    other_L = np.union1d(loose_L, np.flatnonzero(edited_N))
    open_C = _tied(net, label_N, other_L, share=OPEN_SHARE, but=open_C)
    if spec.swap_rounds and open_C.sum() > 1:
        _swap(net, label_N, open_C, spec, rng=rng, progress=progress)
    partition = Partition(
        label_N,
        k=spec.k,
        moved=moved(was_N[kept_N], label_N[kept_N]) if kept_N.any() else 0,
        objective=objective(label_N, attract, repel, repulsion=spec.repulsion),
    )
    return Mended(partition, _touched(then_O, was_N, label_N))


def _seat(was_N: npt.NDArray[np.int64], net: Net, k: int) -> tuple[Labels, npt.NDArray[np.int64]]:
    """Return the communities of the rows that stay, -1 for the others, and the holes in each.

    Where there are too many communities, those with the fewest rows are given up. The one with the
    fewest of what is left becomes the last, which may be short.
    """
    size_C = community_sizes(len(was_N), k)
    held_O = np.bincount(was_N[was_N >= 0], minlength=len(size_C))
    chosen = np.sort(np.argsort(-held_O, kind="stable")[: len(size_C)])
    last = int(np.argmin(held_O[chosen])) if size_C[-1] < k else len(chosen) - 1
    chosen = np.append(np.delete(chosen, last), chosen[last])
    now_O = np.full(len(held_O) + 1, -1, np.int32)  # the last for -1
    now_O[chosen] = np.arange(len(chosen))
    label_N = now_O[was_N]
    short = np.flatnonzero(label_N == len(size_C) - 1)
    for row in _least_tied(net, short)[: max(len(short) - size_C[-1], 0)]:
        label_N[row] = -1
    return label_N, size_C - np.bincount(label_N[label_N >= 0], minlength=len(size_C))


def _least_tied(net: Net, row_X: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Sort a few rows by the weight of their edges among one another."""
    inside = _graph(net)[row_X][:, row_X]
    return row_X[np.argsort(inside.sum(axis=1), kind="stable")]


def _unseat(
    net: Net, label_N: Labels, free_C: npt.NDArray[np.int64], edited_E: npt.NDArray[np.intp]
) -> None:
    """Take edited rows that are tied more to another community out of theirs, in place."""
    edited_E = edited_E[label_N[edited_E] >= 0]
    if not edited_E.size:
        return
    ties = _ties(net, label_N, edited_E, communities=len(free_C))
    own_E = label_N[edited_E]
    astray_E = _best(ties)[1] > _of(ties, own_E)
    free_C += np.bincount(own_E[astray_E], minlength=len(free_C))
    label_N[edited_E[astray_E]] = -1


def _ties(net: Net, label_N: Labels, row_X: npt.NDArray[np.intp], *, communities: int) -> csr_array:
    """Return how much a few rows are tied to each community, X x C; what has none counts not."""
    edges = _graph(net)[row_X]
    label = label_N[edges.indices]
    weight = np.where(label >= 0, edges.data, 0.0)
    ties = csr_array((weight, np.maximum(label, 0), edges.indptr), shape=(len(row_X), communities))
    ties.sum_duplicates()
    return ties


def _best(ties: csr_array) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.float64]]:
    """Return the community that each row is tied to most, and how much, both X."""
    best_X = np.asarray(ties.argmax(axis=1)).ravel()
    return best_X, _of(ties, best_X)


def _of(ties: csr_array, community_X: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Return how much each row is tied to a community of its own, X."""
    return np.asarray(ties[np.arange(len(community_X)), community_X], np.float64).ravel()


def _tied(
    net: Net,
    label_N: Labels,
    other_L: npt.NDArray[np.intp],
    *,
    share: float,
    but: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """Return ``but``, what each other row is tied to most, and more of what they are tied to.

    More only up to a share of all communities, those before included: in holes alone, a
    fresh row would hardly meet what is like it.
    """
    if not other_L.size:
        return but
    ties = _ties(net, label_N, other_L, communities=len(but))
    best_L, most_L = _best(ties)
    tied_C = but.copy()
    tied_C[best_L[most_L > 0]] = True
    tie_C = np.where(tied_C, 0.0, ties.sum(axis=0))
    room = max(int(share * len(but)) - int(tied_C.sum()), 0)
    chosen_C = np.argsort(-tie_C, kind="stable")[:room]
    tied_C[chosen_C[tie_C[chosen_C] > 0]] = True
    return tied_C


def _swap(
    net: Net,
    label_N: Labels,
    open_C: npt.NDArray[np.bool_],
    spec: MiningSpec,
    *,
    rng: np.random.Generator,
    progress: Progress,
) -> None:
    """Exchange rows among the open communities, in place."""
    row_X = np.flatnonzero(open_C[label_N])
    inside = _graph(net)[row_X][:, row_X]
    part = Net(
        inside.indptr.astype(np.int64),
        inside.indices.astype(np.int32),
        inside.data,
        net.group[row_X],
        net.penalty,
    )
    open_labels = np.flatnonzero(open_C).astype(np.int32)
    found_X = refine(
        np.searchsorted(open_labels, label_N[row_X]).astype(np.int32),
        part,
        rounds=spec.swap_rounds,
        rng=rng,
        progress=progress,
        evenness=spec.evenness,
    )
    label_N[row_X] = open_labels[found_X]


def _graph(net: Net) -> csr_array:
    rows = len(net.indptr) - 1
    return csr_array((net.weight, net.indices, net.indptr), shape=(rows, rows))


def _touched(then_O: Labels, was_N: npt.NDArray[np.int64], label_N: Labels) -> int:
    """Count the communities that are not, row by row, one of then."""
    size_C, size_O = np.bincount(label_N), np.bincount(then_O)
    pair, count = np.unique(np.stack([label_N, was_N]), axis=1, return_counts=True)
    same = (pair[1] >= 0) & (count == size_C[pair[0]]) & (count == size_O[pair[1]])
    return len(size_C) - int(same.sum())
