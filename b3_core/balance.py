"""From communities of any size to communities of exactly k rows, without losing their edges.

    labels -> cut:   a community larger than k into pieces, along its own edges
           -> pack:  pieces whole into ceil(N / k) communities; only what does not fit is split
           -> swap:  exchange pairs of rows while that gains (module swap)
           -> Partition

Legend: N rows, E directed edges, C communities, P pieces, L loose rows.
"""

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy.sparse import csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

from b3_core.communities import Labels, Partition, community_sizes
from b3_core.config import MiningSpec
from b3_core.graph import CsrGraph
from b3_core.progress import Progress, silent
from b3_core.swap import Net, refine

VERSION = 3


def balance(
    label_N: Labels,
    *,
    attract: CsrGraph,
    repel: CsrGraph | None,
    group_N: npt.NDArray[np.int32],
    spec: MiningSpec,
    rng: np.random.Generator,
    progress: Progress = silent,
) -> Partition:
    """Make every community exactly ``spec.k`` rows.

    Parameters
    ----------
    label_N
        Communities found, of any size.
    attract, repel
        Rows that belong together, and rows that should not meet.
    group_N
        Swaps part rows of one group. Packing does not look at groups.
    progress
        Told the rounds of swaps that are done, of ``spec.swap_rounds``.

    Returns
    -------
    Partition
        ``moved`` counts rows apart from most of their community: of each community found, the
        rows that are not in the final community which holds most of it. The part of a community
        beyond k rows always counts.

    Raises
    ------
    ValueError
        Labels, groups and graphs are not of the same N rows.
    """
    rows = {len(label_N), len(group_N), attract.rows, attract.rows if repel is None else repel.rows}
    if len(rows) > 1:
        raise ValueError(f"labels, groups and graphs are of {sorted(rows)} rows")
    net = Net.of(attract, repel, group_N=group_N, repulsion=spec.repulsion)
    exact_N = _pack(_cut(label_N, attract, k=spec.k, rng=rng), net, spec.k)
    if spec.swap_rounds:
        exact_N = refine(
            exact_N,
            net,
            rounds=spec.swap_rounds,
            rng=rng,
            progress=progress,
            evenness=spec.evenness,
        )
    return Partition(
        exact_N,
        k=spec.k,
        moved=moved(label_N, exact_N),
        objective=objective(exact_N, attract, repel, repulsion=spec.repulsion),
    )


def objective(
    label_N: Labels, attract: CsrGraph, repel: CsrGraph | None = None, *, repulsion: float = 0.0
) -> float:
    """Sum attraction - repulsion * repel over the pairs of rows in one community, each once."""
    against = 0.0 if repel is None else repulsion * _sum_inside(label_N, repel)
    return _sum_inside(label_N, attract) - against


def row_objective(
    label_N: Labels, attract: CsrGraph, repel: CsrGraph, *, repulsion: float = 0.0
) -> npt.NDArray[np.float64]:
    """Return each row's half of its pairs in :func:`objective`, N."""
    total_N = np.zeros(len(label_N))
    for graph, sign in ((attract, 0.5), (repel, -0.5 * repulsion)):
        row_I, weight_I = _inside(label_N, graph)
        total_N += sign * np.bincount(row_I, weight_I, minlength=len(label_N))
    return total_N


def _sum_inside(label_N: Labels, graph: CsrGraph) -> float:
    _, weight_I = _inside(label_N, graph)
    return float(weight_I.sum(dtype=np.float64)) / 2


def _inside(
    label_N: Labels, graph: CsrGraph
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Return the first row and the weight of each edge within a community, I: both directions."""
    row_E = np.repeat(np.arange(graph.rows, dtype=np.int32), np.diff(graph.indptr))
    inside_E = label_N[row_E] == label_N[graph.indices]
    return row_E[inside_E], graph.weight[inside_E]


def _cut(
    label_N: Labels, attract: CsrGraph, *, k: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Cut communities larger than k into pieces of k rows and one of what is left.

    Rows are cut in reverse Cuthill-McKee order, a breadth-first order in which neighbours are
    close (Cuthill and McKee 1969, 10.1145/800195.805928).

    Returns
    -------
    numpy.ndarray
        Piece of every row, N: numbered at random, so that the order of rows in a file does not
        decide which pieces share a community.
    """
    rows = len(label_N)
    size_C = np.bincount(label_N)
    row_E = np.repeat(np.arange(rows), np.diff(attract.indptr))
    inside_E = (label_N[row_E] == label_N[attract.indices]) & (size_C[label_N[row_E]] > k)
    inside = csr_array(
        (np.ones(int(inside_E.sum())), (row_E[inside_E], attract.indices[inside_E])),
        shape=(rows, rows),
    )
    rank_N = np.empty(rows, np.int64)
    rank_N[reverse_cuthill_mckee(inside, symmetric_mode=True)] = np.arange(rows)
    order_N = np.lexsort((rank_N, label_N))
    position_N = np.arange(rows) - (np.cumsum(size_C) - size_C)[label_N[order_N]]
    piece_N = np.empty(rows, np.int64)
    piece_N[order_N] = np.cumsum(position_N % k == 0) - 1
    return rng.permutation(piece_N.max() + 1)[piece_N]


def _pack(piece_N: npt.NDArray[np.int64], net: Net, k: int) -> Labels:
    """Put pieces into communities, first fit, the largest first; then the rows that are loose.

    Loose rows are single ones, and those of pieces that fit nowhere whole. Each goes where it is
    tied to most among the communities with room, or else into the first hole.
    """
    free_C = community_sizes(len(piece_N), k)
    size_P = np.bincount(piece_N)
    label_P = np.full(len(size_P), -1, np.int32)
    for size in np.unique(size_P[size_P > 1])[::-1]:
        piece = np.flatnonzero(size_P == size)
        # Equal pieces fill one community after the other, which is first fit for all at once.
        room_C = free_C // size
        take_C = np.clip(len(piece) - (np.cumsum(room_C) - room_C), 0, room_C)
        label_P[piece[: take_C.sum()]] = np.repeat(np.arange(len(free_C)), take_C)
        free_C -= take_C * size
    label_N = label_P[piece_N]
    loose_L = np.flatnonzero(label_N < 0)
    loose_L = loose_L[np.argsort(piece_N[loose_L], kind="stable")]
    settle(net, label_N, free_C, loose_L)
    return label_N


def settle(
    net: Net,
    label_N: Labels,
    free_C: npt.NDArray[np.int64],
    loose_L: npt.NDArray[np.int64],
) -> None:
    """Give every loose row, in order, a place among the ``free_C`` of each community, in place.

    Where it is tied to most among the communities with room, or else in the first hole.
    """
    _settle(net, label_N, free_C, loose_L)
    rest_L = loose_L[label_N[loose_L] < 0]
    label_N[rest_L] = np.repeat(np.arange(len(free_C), dtype=np.int32), free_C)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _settle(
    net: Net,
    label_N: Labels,
    free_C: npt.NDArray[np.int64],
    loose_L: npt.NDArray[np.int64],
) -> None:
    """Give each loose row, in order, the community with room that it is tied to most, if any."""
    tie_C = np.zeros(len(free_C))
    for row in loose_L:
        for e in range(net.indptr[row], net.indptr[row + 1]):
            community = label_N[net.indices[e]]
            if community >= 0 and free_C[community] > 0:
                tie_C[community] += net.weight[e]
        best, best_tie = -1, 0.0
        for e in range(net.indptr[row], net.indptr[row + 1]):
            community = label_N[net.indices[e]]
            if community >= 0:
                if tie_C[community] > best_tie:
                    best, best_tie = community, tie_C[community]
                tie_C[community] = 0.0
        if best >= 0:
            label_N[row] = best
            free_C[best] -= 1


def moved(before_N: Labels, after_N: Labels) -> int:
    """Count the rows apart from most of the community they were in: N labels each."""
    communities = int(after_N.max()) + 1
    code, count = np.unique(before_N.astype(np.int64) * communities + after_N, return_counts=True)
    most_C = np.zeros(int(before_N.max()) + 1, np.int64)
    np.maximum.at(most_C, code // communities, count)
    return len(before_N) - int(most_C.sum())
