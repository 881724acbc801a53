"""Pair swaps: communities of fixed sizes get better by exchanging rows, two at a time.

What is maximised is the sum of w over the pairs of rows in one community, where

    w(i, j) = attraction(i, j) - repulsion * repel(i, j) - penalty * [i and j are of one group]

and w(i, A) is the sum of w(i, j) over the rows j of A, i itself excepted. Exchanging row i of A
with row j of B changes that sum by

    gain(i, j) = w(i, B) - w(i, A) + w(j, A) - w(j, B) - 2 w(i, j)

where the last term takes back that w(i, B) counts j and w(j, A) counts i. Exchanges are made only
where that is positive, so no swap ever makes the whole worse.

Everything compiled runs on one thread and sums weights in the order they are stored in, so that
the result is the same everywhere.

Legend: N rows, E directed edges, C communities, K rows of a community, F communities tried for
one row.
"""

from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy.sparse import csr_array

from b3_core.graph import CsrGraph
from b3_core.progress import Progress

FEW = 4  # communities tried for a row: those it is tied to most
TOLERANCE = 1e-9  # least gain of a swap: above the rounding of sums of weights


class Net(NamedTuple):
    """w, as the kernels read it: a graph of signed weights, and groups that pay the penalty."""

    indptr: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int32]
    weight: npt.NDArray[np.float64]
    group: npt.NDArray[np.int32]  # N; -1 for a row that is alone in its group
    penalty: float  # more than all edges of two rows, so that groups are parted first

    @classmethod
    def of(
        cls,
        attract: CsrGraph,
        repel: CsrGraph | None,
        *,
        group_N: npt.NDArray[np.int32],
        repulsion: float,
    ) -> Self:
        """Join both graphs into one, and choose the penalty."""
        signed = attract.to_scipy().astype(np.float64)
        if repel is not None and repulsion:
            signed = csr_array(signed - repulsion * repel.to_scipy().astype(np.float64))
            signed.sort_indices()
        _, code_N, size_G = np.unique(group_N, return_inverse=True, return_counts=True)
        return cls(
            signed.indptr.astype(np.int64),
            signed.indices.astype(np.int32),
            signed.data,
            np.where(size_G[code_N] > 1, code_N, -1).astype(np.int32),
            penalty=1.0 + 2.0 * float(abs(signed).sum(axis=1).max()),
        )


class Seats(NamedTuple):
    """Who is where. Kernels change these arrays in place."""

    label: npt.NDArray[np.int32]  # N
    member: npt.NDArray[np.int32]  # (C, K); -1 after the last row of a short community
    place: npt.NDArray[np.int32]  # N: row == member[label[row], place[row]]
    own: npt.NDArray[np.float64]  # N: w(row, label[row])
    spare: npt.NDArray[np.int64]  # N: a community drawn for each row, for when its own repels it

    @classmethod
    def of(cls, label_N: npt.NDArray[np.int32], net: Net) -> Self:
        """Seat every row in its community; none may be empty."""
        size_C = np.bincount(label_N)
        order_N = np.argsort(label_N, kind="stable")
        place_N = np.empty(len(label_N), np.int32)
        place_N[order_N] = np.arange(len(label_N)) - np.repeat(np.cumsum(size_C) - size_C, size_C)
        member_CK = np.full((len(size_C), size_C.max()), -1, np.int32)
        member_CK[label_N, place_N] = np.arange(len(label_N))
        own_N, spare_N = np.empty(len(label_N)), np.zeros(len(label_N), np.int64)
        seats = cls(label_N.copy(), member_CK, place_N, own_N, spare_N)
        _tally(net, seats, np.arange(len(size_C)))
        return seats


def refine(
    label_N: npt.NDArray[np.int32],
    net: Net,
    *,
    rounds: int,
    rng: np.random.Generator,
    progress: Progress,
) -> npt.NDArray[np.int32]:
    """Go through all rows until a round gains nothing, at most ``rounds`` times.

    Returns
    -------
    numpy.ndarray
        int32, N: labels with the same number of rows for each community.
    """
    seats = Seats.of(label_N, net)
    communities = len(seats.member)
    for done in range(rounds):
        progress(done, rounds)
        seats.spare[:] = rng.integers(communities, size=len(label_N))
        swaps, _ = sweep(net, seats, rng.permutation(communities))
        if not swaps:
            break
    progress(rounds, rounds)
    return seats.label


@njit(cache=True)  # type: ignore[untyped-decorator]
def sweep(net: Net, seats: Seats, order_C: npt.NDArray[np.int64]) -> tuple[int, float]:
    """Go through all rows once; exchange each with the row that gains most, if any does.

    ``near`` holds the edges of w(., A) for all rows, ``own`` holds w(i, A) and w(j, B), ``link``
    the edges of w(i, .): so a gain costs no walk along edges.

    Parameters
    ----------
    order_C
        Communities in the order in which their rows have their turn.

    Returns
    -------
    (int, float)
        Exchanges made, and what they gained.
    """
    near_N, link_N = np.zeros(len(seats.label)), np.zeros(len(seats.label))
    tie_C = np.zeros(len(seats.member))
    swaps, gained = 0, 0.0
    for a in order_C:
        _spread(net, seats.member[a], near_N)
        for place in range(seats.member.shape[1]):
            i = seats.member[a, place]
            if i < 0:
                break
            _spread(net, seats.member[a, place : place + 1], link_N)
            best_j, best_gain = -1, TOLERANCE
            for b in _options(net, seats, i, tie_C):
                outer = _tie(net, seats, i, b) - seats.own[i]
                for j in seats.member[b]:
                    if j < 0:
                        break
                    w_ij = link_N[j] - net.penalty * _of_one_group(net, i, j)
                    inner = near_N[j] - net.penalty * _kin(net, seats, j, a) - seats.own[j]
                    gain = outer + inner - 2.0 * w_ij
                    if gain > best_gain:
                        best_j, best_gain = j, gain
            _clear(net, seats.member[a, place : place + 1], link_N)
            if best_j >= 0:
                _clear(net, seats.member[a], near_N)
                _exchange(net, seats, i, best_j)
                _spread(net, seats.member[a], near_N)
                swaps += 1
                gained += best_gain
        _clear(net, seats.member[a], near_N)
    return swaps, gained


@njit(cache=True)  # type: ignore[untyped-decorator]
def _options(net: Net, seats: Seats, row: int, tie_C: Any) -> Any:
    """Return the communities to try for a row: the few others it is tied to most.

    A row that its own community repels may have no tie elsewhere, so it also tries the few
    communities from its spare one on. ``tie_C`` is scratch: zeros, before and after.
    """
    option_F, best_F = np.empty(2 * FEW, np.int64), np.empty(FEW)
    found, communities = 0, len(tie_C)
    for e in range(net.indptr[row], net.indptr[row + 1]):
        tie_C[seats.label[net.indices[e]]] += net.weight[e]
    for e in range(net.indptr[row], net.indptr[row + 1]):
        community = seats.label[net.indices[e]]
        tie = tie_C[community]
        tie_C[community] = 0.0
        if community == seats.label[row] or tie <= 0.0 or (found == FEW and tie <= best_F[-1]):
            continue
        at = min(found, FEW - 1)
        while at > 0 and best_F[at - 1] < tie:
            option_F[at], best_F[at] = option_F[at - 1], best_F[at - 1]
            at -= 1
        option_F[at], best_F[at] = community, tie
        found = min(found + 1, FEW)
    if seats.own[row] < 0.0:
        for step in range(min(FEW, communities)):
            community = (seats.spare[row] + step) % communities
            if community != seats.label[row]:
                option_F[found] = community
                found += 1
    return option_F[:found]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _exchange(net: Net, seats: Seats, i: int, j: int) -> None:
    a, b = seats.label[i], seats.label[j]
    seats.label[i], seats.label[j] = b, a
    seats.place[i], seats.place[j] = seats.place[j], seats.place[i]
    seats.member[a, seats.place[j]] = j
    seats.member[b, seats.place[i]] = i
    _tally(net, seats, (a, b))


@njit(cache=True)  # type: ignore[untyped-decorator]
def _tally(net: Net, seats: Seats, communities: Any) -> None:
    """Work out w(row, own community) anew for the members of some."""
    for community in communities:
        for row in seats.member[community]:
            if row >= 0:
                seats.own[row] = _tie(net, seats, row, community)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _tie(net: Net, seats: Seats, row: int, community: int) -> float:
    """w(row, community)."""
    tie = 0.0
    for e in range(net.indptr[row], net.indptr[row + 1]):
        if seats.label[net.indices[e]] == community:
            tie += net.weight[e]
    tie -= net.penalty * _kin(net, seats, row, community)
    return float(tie)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _kin(net: Net, seats: Seats, row: int, community: int) -> int:
    """Count the members of a community, but the row itself, that are of the row's group."""
    kin = 0
    if net.group[row] >= 0:
        for other in seats.member[community]:
            if other >= 0 and other != row and _of_one_group(net, row, other):
                kin += 1
    return kin


@njit(cache=True)  # type: ignore[untyped-decorator]
def _of_one_group(net: Net, i: int, j: int) -> bool:
    return bool(net.group[i] >= 0 and net.group[i] == net.group[j])


@njit(cache=True)  # type: ignore[untyped-decorator]
def _spread(net: Net, rows: Any, total_N: Any) -> None:
    """Add the edges of some rows to what they lead to."""
    for row in rows:
        if row >= 0:
            for e in range(net.indptr[row], net.indptr[row + 1]):
                total_N[net.indices[e]] += net.weight[e]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _clear(net: Net, rows: Any, total_N: Any) -> None:
    """Put zero wherever the edges of some rows lead to."""
    for row in rows:
        if row >= 0:
            for e in range(net.indptr[row], net.indptr[row + 1]):
                total_N[net.indices[e]] = 0.0
