"""Communities exchanged between batches, so that rows of one group are in different ones.

    groups that several units have -> units that meet theirs in a batch -> exchanges, pass by pass

Legend: U units of K rows, communities or rows drawn at random; S batches of P units; H groups, Y
groups of all units, each once a unit; G and X, of these those that several units have; L places.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

LOOK = 32  # exchanges tried for a community that meets its own groups in its batch
PASSES = 3  # times all batches are looked through for such communities


def part_groups(
    unit_SP: npt.NDArray[np.int64],
    group_UK: npt.NDArray[np.int32],
    broken_U: npt.NDArray[np.bool_],
    *,
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Exchange communities between batches while that parts rows of one group.

    For a community u of batch s that meets one of its groups there, up to ``LOOK`` communities v
    of other batches t are tried; u and v change places if fewer groups then meet in s and t.
    Units of random rows (``broken_U``) change places with their like where that helps, so that each
    batch keeps its share of them.

    Compiled, for where a few groups are most of the rows nearly every unit tries in vain.
    """
    units = _Units(*_shared_groups(group_UK), broken_U)
    if not units.code_X.size:
        return unit_SP
    groups = int(units.code_X.max()) + 1
    seats = _Seats(unit_SP.astype(np.int64), np.zeros(groups, np.int64), np.zeros(groups, np.int8))
    for _ in range(PASSES):
        exchanges = 0
        # Where a group is in every batch already, no exchange makes it meet itself less.
        spread_G = _spread(units, seats)
        place = _next_meeting(units, seats, spread_G, 0)
        while place < unit_SP.size:
            # Drawn only for those that need it, one at a time: a plan without any draws nothing.
            place_L = rng.integers(unit_SP.size, size=LOOK)
            exchanges += _exchange(units, seats, place, place_L)
            place = _next_meeting(units, seats, spread_G, place + 1)
        if not exchanges:
            break
    return seats.unit_SP


def _shared_groups(
    group_UK: npt.NDArray[np.int32],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the groups of each unit that are in another unit too, as ``_Units`` has them."""
    sorted_UK = np.sort(group_UK, axis=1)
    once_UK = np.ones(sorted_UK.shape, bool)
    once_UK[:, 1:] = sorted_UK[:, 1:] != sorted_UK[:, :-1]
    _, group_Y, units_H = np.unique(sorted_UK[once_UK], return_inverse=True, return_counts=True)
    shared_H = units_H > 1
    shared_UK = np.zeros(sorted_UK.shape, bool)
    shared_UK[once_UK] = shared_H[group_Y]
    start_U = np.concatenate([[0], np.cumsum(shared_UK.sum(axis=1))])
    code_H = np.cumsum(shared_H) - 1
    return start_U, code_H[group_Y[shared_H[group_Y]]]


class _Units(NamedTuple):
    """Units and their groups, as the kernels read them; of groups those that several units have."""

    start_U: npt.NDArray[np.int64]  # U + 1: of a unit's groups in code_X, each once
    code_X: npt.NDArray[np.int64]  # groups, counted from 0
    broken_U: npt.NDArray[np.bool_]


class _Seats(NamedTuple):
    """Which unit is where, changed in place; and scratch, all zero before and after use."""

    unit_SP: npt.NDArray[np.int64]
    here_G: npt.NDArray[np.int64]  # how many units of one batch have a group
    mark_G: npt.NDArray[np.int8]  # groups of two units, and which of them: 1, 2 or 3 for both


@njit(cache=True)  # type: ignore[untyped-decorator]
def _spread(units: _Units, seats: _Seats) -> npt.NDArray[np.int64]:
    """Count the batches that each group is in, G."""
    spread_G = np.zeros(len(seats.here_G), np.int64)
    last_G = np.full(len(seats.here_G), -1)
    for s in range(len(seats.unit_SP)):
        for u in seats.unit_SP[s]:
            for group in units.code_X[units.start_U[u] : units.start_U[u + 1]]:
                if last_G[group] != s:
                    spread_G[group] += 1
                    last_G[group] = s
    return spread_G


@njit(cache=True)  # type: ignore[untyped-decorator]
def _next_meeting(units: _Units, seats: _Seats, spread_G: npt.NDArray[np.int64], place: int) -> int:
    """Return the first place, from one on, whose unit meets a group that not every batch has.

    Places are counted through the batches; it is their number if there is none.
    """
    batches, each = seats.unit_SP.shape
    found = -1
    while found < 0 and place < batches * each:
        s = place // each
        for u in seats.unit_SP[s]:
            _count(units, seats.here_G, u, 1)
        for p in range(place - s * each, each):
            u = seats.unit_SP[s, p]
            for group in units.code_X[units.start_U[u] : units.start_U[u + 1]]:
                if found < 0 and seats.here_G[group] > 1 and spread_G[group] < batches:
                    found = s * each + p
        for u in seats.unit_SP[s]:
            _count(units, seats.here_G, u, -1)
        place = (s + 1) * each
    return found if found >= 0 else batches * each


@njit(cache=True)  # type: ignore[untyped-decorator]
def _exchange(units: _Units, seats: _Seats, place: int, place_L: npt.NDArray[np.int64]) -> bool:
    """Exchange the unit of a place with the first of others that parts groups; say if one does.

    Its like, random rows or communities, are tried before the others.
    """
    each = seats.unit_SP.shape[1]
    s, p = place // each, place % each
    u = seats.unit_SP[s, p]
    for w in seats.unit_SP[s]:
        _count(units, seats.here_G, w, 1)
    _count(units, seats.here_G, u, -1)
    u_in_s = _met(units, seats.here_G, u)
    done = False
    for turn in range(2):
        for other in place_L:
            t, q = other // each, other % each
            v = seats.unit_SP[t, q]
            unlike = units.broken_U[u] != units.broken_U[v]
            if done or t == s or unlike != (turn == 1):
                continue
            u_in_t, v_in_t = _met_beside(units, seats, u, other)
            if _met(units, seats.here_G, v) + u_in_t < u_in_s + v_in_t:
                seats.unit_SP[s, p], seats.unit_SP[t, q] = v, u
                done = True
    for w in seats.unit_SP[s]:
        if w != seats.unit_SP[s, p]:
            _count(units, seats.here_G, w, -1)
    return done


@njit(cache=True)  # type: ignore[untyped-decorator]
def _count(units: _Units, count_G: npt.NDArray[np.int64], unit: int, more: int) -> None:
    for group in units.code_X[units.start_U[unit] : units.start_U[unit + 1]]:
        count_G[group] += more


@njit(cache=True)  # type: ignore[untyped-decorator]
def _met(units: _Units, count_G: npt.NDArray[np.int64], unit: int) -> int:
    """Count the groups of a unit that were counted."""
    met = 0
    for group in units.code_X[units.start_U[unit] : units.start_U[unit + 1]]:
        met += count_G[group] > 0
    return met


@njit(cache=True)  # type: ignore[untyped-decorator]
def _met_beside(units: _Units, seats: _Seats, u: int, place: int) -> tuple[int, int]:
    """Count the groups of u, and of the unit v at a place of another batch, that are beside v."""
    each, mark_G = seats.unit_SP.shape[1], seats.mark_G
    t, v = place // each, seats.unit_SP[place // each, place % each]
    of_u = units.code_X[units.start_U[u] : units.start_U[u + 1]]
    of_v = units.code_X[units.start_U[v] : units.start_U[v + 1]]
    for group in of_u:
        mark_G[group] = 1
    for group in of_v:
        mark_G[group] += 2
    u_met = v_met = 0
    for w in seats.unit_SP[t]:
        if w != v:
            for group in units.code_X[units.start_U[w] : units.start_U[w + 1]]:
                u_met += mark_G[group] & 1
                v_met += mark_G[group] >> 1
                mark_G[group] = 0  # each counts once
    for group in of_u:
        mark_G[group] = 0
    for group in of_v:
        mark_G[group] = 0
    return u_met, v_met
