"""Pair swaps: communities of fixed sizes get better by exchanging rows, two at a time.

What is maximised is

    sum over communities C of phi(h(C)) - penalty * [pairs in C of one group]

where h(C) is the sum over the pairs of rows in C of

    w(i, j) = attraction(i, j) - repulsion * repel(i, j)

and phi(h) = h, or with *evenness* a concave curve that makes edges worth less where there are many
already (``worth``). With w(i, A) the sum of w(i, j) over the rows j of A, exchanging row i of A
with row j of B changes the two sums by

    h(A): w(j, A) - w(i, A) - w(i, j)         h(B): w(i, B) - w(j, B) - w(i, j)

where the last term takes back that w(j, A) counts i and w(i, B) counts j. Exchanges are made only
where the whole gains, so no swap ever makes it worse.

A sweep goes through the communities in parts. For all rows of a part the best exchange is looked
for at once, on all cores, while nobody moves; then the exchanges are made one after the other, each
only if it still gains. What is found does not depend on the number of threads.

Legend: N rows, E directed edges, C communities, K rows of a community, F communities tried for
one row, T threads, X rows of a part.
"""

from typing import Any, NamedTuple, Self

import numba
import numpy as np
import numpy.typing as npt
from numba import njit, prange
from scipy.sparse import csr_array

from b3_core.graph import CsrGraph
from b3_core.progress import Progress

FEW = 4  # communities tried for a row: those it is tied to most
PARTS = 32  # of a sweep, at most: the more, the fewer exchanges are spoilt by earlier ones
TOLERANCE = 1e-9  # least gain of a swap: above the rounding of sums of weights
# A sweep that gains less than this share of the best one, and parts no rows of one group, is the
# last. On the union graph of 20,480 demo rows that halves the sweeps, 16 to 8, and loses 0.4 % of
# the objective.
ENOUGH = 0.01
GROWN = 1.5  # times the mean that evenness goes by: beyond, it goes by the new mean


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
    own: npt.NDArray[np.float64]  # N: w(row, label[row]), without penalty
    hardness: npt.NDArray[np.float64]  # C: h
    spare: npt.NDArray[np.int64]  # N: a community drawn for each row, for when its own repels it
    mate: npt.NDArray[np.int64]  # N: the row to exchange each with; -1 if none
    bend: float  # c of ``worth``; 0 where all communities count alike

    @classmethod
    def of(cls, label_N: npt.NDArray[np.int32], net: Net, *, evenness: float = 0.0) -> Self:
        """Seat every row in its community; none may be empty."""
        size_C = np.bincount(label_N)
        order_N = np.argsort(label_N, kind="stable")
        place_N = np.empty(len(label_N), np.int32)
        place_N[order_N] = np.arange(len(label_N)) - np.repeat(np.cumsum(size_C) - size_C, size_C)
        member_CK = np.full((len(size_C), size_C.max()), -1, np.int32)
        member_CK[label_N, place_N] = np.arange(len(label_N))
        own_N, hardness_C = np.empty(len(label_N)), np.empty(len(size_C))
        spare_N, mate_N = np.zeros((2, len(label_N)), np.int64)
        seats = cls(label_N.copy(), member_CK, place_N, own_N, hardness_C, spare_N, mate_N, 0.0)
        _tally(net, seats)
        return seats.bent(evenness)

    @property
    def mean(self) -> float:
        """Mean h of the communities."""
        return float(self.hardness.mean())

    def bent(self, evenness: float) -> Self:
        """Return the same seats with ``worth`` bent by their mean h; straight if that is below 0.

        ``evenness`` is the share of an edge's worth that is lost in a community of mean h, to twice
        that share at twice the mean: c = evenness / (4 mean h).
        """
        mean = self.mean
        return self._replace(bend=evenness / (4.0 * mean) if mean > 0.0 else 0.0)


class Desk(NamedTuple):
    """One thread's scratch, all zero before and after use; a row a thread where it is T x."""

    near: npt.NDArray[np.float64]  # N: w(., A), by the edges of A's rows
    link: npt.NDArray[np.float64]  # N: w(i, .)
    tie: npt.NDArray[np.float64]  # C: w(i, C)
    kin: npt.NDArray[np.float64]  # N: rows of A by group
    theirs: npt.NDArray[np.float64]  # N: rows of another community by group


def refine(
    label_N: npt.NDArray[np.int32],
    net: Net,
    *,
    rounds: int,
    rng: np.random.Generator,
    progress: Progress,
    evenness: float = 0.0,
    enough: float = ENOUGH,
) -> npt.NDArray[np.int32]:
    """Sweep until a round gains less than ``enough`` of the best one, at most ``rounds`` times.

    A round that parts rows of one group is never the last but for ``rounds``: it gains little in
    edges, or loses some, and those after it gain. Edges lose worth by the mean h (``evenness``) of
    the communities as they came, or, from a poor start, as they have become since: else nothing
    would be gained above twice the mean of communities that were drawn at random.

    Returns
    -------
    numpy.ndarray
        int32, N: labels with the same number of rows for each community.
    """
    seats = Seats.of(label_N, net, evenness=evenness)
    communities = len(seats.member)
    most, mean = 0.0, seats.mean
    for done in range(rounds):
        progress(done, rounds)
        seats.spare[:] = rng.integers(communities, size=len(label_N))
        swaps, gained, parted = sweep(net, seats, rng.permutation(communities))
        if evenness and seats.mean > GROWN * max(mean, 0.0):
            seats, mean, most = seats.bent(evenness), seats.mean, 0.0
            continue
        most = max(most, gained)
        if not swaps or (gained < enough * most and parted <= 0):
            break
    progress(rounds, rounds)
    return seats.label


def sweep(net: Net, seats: Seats, order_C: npt.NDArray[np.int64]) -> tuple[int, float, int]:
    """Go through all rows once; exchange each with the row that gains most, if any does.

    Parameters
    ----------
    order_C
        Communities in the order in which their rows have their turn, in ``PARTS`` parts.

    Returns
    -------
    (int, float, int)
        Exchanges made; what they gained, without the penalty; and how many fewer pairs of one group
        there are in a community.
    """
    rows, communities = len(seats.label), len(seats.member)
    threads = numba.get_num_threads()
    groups = int(net.group.max(initial=-1)) + 1
    cells_of = (rows, rows, communities, groups, groups)
    desks = Desk(*(np.zeros((threads, cells)) for cells in cells_of))
    _tally(net, seats)  # sums that were kept up to date by adding collect rounding errors
    swaps, gained, parted = 0, 0.0, 0
    for part_X in np.array_split(order_C, min(PARTS, communities)):
        row_X = seats.member[part_X].ravel()  # as they sit now: a copy
        _propose(net, seats, part_X, desks)
        more, gain, pairs = _exchange_all(net, seats, row_X[row_X >= 0])
        swaps, gained, parted = swaps + more, gained + gain, parted + pairs
    return swaps, gained, parted


@njit(cache=True, parallel=True)  # type: ignore[untyped-decorator]
def _propose(net: Net, seats: Seats, part_X: Any, desks: Desk) -> None:
    """For each row of some communities find the row to exchange it with; -1 if none gains."""
    # In a parallel loop numba loses what is written to an array that is taken out of a tuple there.
    near_TN, link_TN, tie_TC, mate_N = desks.near, desks.link, desks.tie, seats.mate
    kin_TG, theirs_TG = desks.kin, desks.theirs
    for x in prange(len(part_X)):
        thread = numba.get_thread_id()
        desk = Desk(
            near_TN[thread], link_TN[thread], tie_TC[thread], kin_TG[thread], theirs_TG[thread]
        )
        members = seats.member[part_X[x]]
        _spread(net, members, desk.near)
        _count_kin(net, members, desk.kin)
        for i in members:
            if i >= 0:
                _spread(net, members[seats.place[i] : seats.place[i] + 1], desk.link)
                mate_N[i] = _best(net, seats, i, desk)
                _clear(net, members[seats.place[i] : seats.place[i] + 1], desk.link)
        _clear(net, members, desk.near)
        _forget_kin(net, members, desk.kin)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _best(net: Net, seats: Seats, i: int, desk: Desk) -> int:
    """Find the row whose exchange with row i gains most, or -1.

    ``own`` holds w(i, A) and w(j, B), and the desk the rest: a gain costs no walk along edges.
    """
    a = seats.label[i]
    of_i = net.group[i]
    kin_a = desk.kin[of_i] - 1.0 if of_i >= 0 else 0.0
    best_j, best_gain = -1, TOLERANCE
    options, tie_F = _options(net, seats, i, desk.tie)
    for f in range(len(options)):
        b = options[f]
        _count_kin(net, seats.member[b], desk.theirs)
        kin_b = desk.theirs[of_i] if of_i >= 0 else 0.0
        for j in seats.member[b]:
            if j < 0:
                break
            more_a = desk.near[j] - seats.own[i] - desk.link[j]
            more_b = tie_F[f] - seats.own[j] - desk.link[j]
            gain = _rise(seats, a, more_a) + _rise(seats, b, more_b)
            pairs = kin_b - kin_a
            of_j = net.group[j]
            if of_j >= 0:
                pairs += desk.kin[of_j] - (desk.theirs[of_j] - 1.0)
                pairs -= 2 * _of_one_group(net, i, j)
            gain -= net.penalty * pairs
            if gain > best_gain:
                best_j, best_gain = j, gain
        _forget_kin(net, seats.member[b], desk.theirs)
    return best_j


@njit(cache=True)  # type: ignore[untyped-decorator]
def _options(net: Net, seats: Seats, row: int, tie_C: Any) -> Any:
    """Return the communities to try for a row, the few others it is tied to most, and w to each.

    A row that its own community repels may have no tie elsewhere, so it also tries the few
    communities from its spare one on.
    """
    option_F, best_F = np.empty(2 * FEW, np.int64), np.zeros(2 * FEW)
    found, communities = 0, len(tie_C)
    own = seats.own[row] - net.penalty * _kin(net, seats, row, seats.label[row])
    for e in range(net.indptr[row], net.indptr[row + 1]):
        tie_C[seats.label[net.indices[e]]] += net.weight[e]
    if own < 0.0:
        for step in range(min(FEW, communities)):
            community = (seats.spare[row] + step) % communities
            option_F[FEW + step], best_F[FEW + step] = community, tie_C[community]
    for e in range(net.indptr[row], net.indptr[row + 1]):
        community = seats.label[net.indices[e]]
        tie = tie_C[community]
        tie_C[community] = 0.0
        if community == seats.label[row] or tie <= 0.0 or (found == FEW and tie <= best_F[FEW - 1]):
            continue
        at = min(found, FEW - 1)
        while at > 0 and best_F[at - 1] < tie:
            option_F[at], best_F[at] = option_F[at - 1], best_F[at - 1]
            at -= 1
        option_F[at], best_F[at] = community, tie
        found = min(found + 1, FEW)
    if own < 0.0:
        for spare in range(FEW, FEW + min(FEW, communities)):
            if option_F[spare] != seats.label[row]:
                option_F[found], best_F[found] = option_F[spare], best_F[spare]
                found += 1
    return option_F[:found], best_F[:found]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _exchange_all(net: Net, seats: Seats, row_X: Any) -> tuple[int, float, int]:
    """Make the exchanges that were found, in order, if they gain as things are now."""
    swaps, gained, parted = 0, 0.0, 0
    for i in row_X:
        j = seats.mate[i]
        if j < 0 or seats.label[i] == seats.label[j]:
            continue
        a, b = seats.label[i], seats.label[j]
        i_to_b, w_ij = _ties(net, seats, i, (b, j))
        j_to_a, _ = _ties(net, seats, j, (a, i))
        more_a, more_b = j_to_a - seats.own[i] - w_ij, i_to_b - seats.own[j] - w_ij
        pairs = _kin(net, seats, i, b) - _kin(net, seats, i, a)
        pairs += _kin(net, seats, j, a) - _kin(net, seats, j, b) - 2 * _of_one_group(net, i, j)
        gain = _rise(seats, a, more_a) + _rise(seats, b, more_b)
        if gain - net.penalty * pairs > TOLERANCE:
            seats.hardness[a] += more_a
            seats.hardness[b] += more_b
            _exchange(net, seats, i, j)
            seats.own[i], seats.own[j] = i_to_b - w_ij, j_to_a - w_ij
            swaps += 1
            gained += gain
            parted -= pairs
    return swaps, gained, parted


@njit(cache=True)  # type: ignore[untyped-decorator]
def _exchange(net: Net, seats: Seats, i: int, j: int) -> None:
    """Let i and j change places, and tell ``own`` of all rows they have an edge with."""
    a, b = seats.label[i], seats.label[j]
    _announce(net, seats, i, (a, b))
    _announce(net, seats, j, (b, a))
    seats.label[i], seats.label[j] = b, a
    seats.place[i], seats.place[j] = seats.place[j], seats.place[i]
    seats.member[a, seats.place[j]] = j
    seats.member[b, seats.place[i]] = i


@njit(cache=True)  # type: ignore[untyped-decorator]
def _announce(net: Net, seats: Seats, row: int, move: tuple[int, int]) -> None:
    left, joined = move
    for e in range(net.indptr[row], net.indptr[row + 1]):
        other = net.indices[e]
        if seats.label[other] == left:
            seats.own[other] -= net.weight[e]
        elif seats.label[other] == joined:
            seats.own[other] += net.weight[e]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _rise(seats: Seats, community: int, more: float) -> float:
    """Say how much more a community is worth whose h rises by ``more``."""
    if seats.bend == 0.0:
        return more
    before = seats.hardness[community]
    return float(worth(before + more, seats.bend) - worth(before, seats.bend))


@njit(cache=True)  # type: ignore[untyped-decorator]
def worth(hardness: float, bend: float) -> float:
    """phi: h - c h^2 up to its top at h = 1 / (2 c), level from there; h itself below 0.

    Its slope is between 0 and 1, so that parting a group stays worth more than any edges.
    """
    if hardness <= 0.0 or bend == 0.0:
        return hardness
    top = min(hardness, 0.5 / bend)
    return top - bend * top * top


@njit(cache=True, parallel=True)  # type: ignore[untyped-decorator]
def _tally(net: Net, seats: Seats) -> None:
    """Work out w(row, own community) and h anew, for all."""
    own_N, hardness_C = seats.own, seats.hardness
    for c in prange(len(seats.member)):
        total = 0.0
        for row in seats.member[c]:
            if row >= 0:
                own_N[row] = _ties(net, seats, row, (c, -1))[0]
                total += own_N[row]
        hardness_C[c] = total / 2.0


@njit(cache=True)  # type: ignore[untyped-decorator]
def _ties(net: Net, seats: Seats, row: int, to: tuple[int, int]) -> tuple[float, float]:
    """Return w(row, community) and w(row, other)."""
    community, other = to
    tie, link = 0.0, 0.0
    for e in range(net.indptr[row], net.indptr[row + 1]):
        if seats.label[net.indices[e]] == community:
            tie += net.weight[e]
        if net.indices[e] == other:
            link = net.weight[e]
    return tie, link


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
def _count_kin(net: Net, rows: Any, kin_G: Any) -> None:
    """Count some rows by group: where a row is weighed against K others, each is one look-up."""
    for row in rows:
        if row >= 0 and net.group[row] >= 0:
            kin_G[net.group[row]] += 1.0


@njit(cache=True)  # type: ignore[untyped-decorator]
def _forget_kin(net: Net, rows: Any, kin_G: Any) -> None:
    for row in rows:
        if row >= 0 and net.group[row] >= 0:
            kin_G[net.group[row]] = 0.0


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
