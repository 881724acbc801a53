"""Cells: a dataset cut into pieces of rows that are close together.

    vectors -> k-means of the positives         -> lists, in which ``probing`` looks for neighbours
            -> k-means of query + positive      -> lists of close rows
            -> these halved again and again     -> an order in which close rows are close
            -> that order cut every S rows      -> cells of exactly S rows, but the last
            -> Cells

A cell is ranked and partitioned by itself, in memory that depends on S and not on the number of
rows. A multiple of K rows in a cell leaves no community unfinished but the last of all.

Legend: N rows, D width of a vector, L lists, C cells, S rows of a cell, X rows of one block.
"""

import itertools
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from b3_core.artifacts import Artifact, Draft
from b3_core.lists import find_lists
from b3_core.progress import Progress, silent

VERSION = 5

LIST_ROWS = 256  # positives of a list, on average
_SPLITS = 32  # lists of close rows that a cell is made of, on average

Sides = tuple[npt.NDArray[Any], npt.NDArray[Any]]
"""Vectors of queries and of positives, (N, D) each, float16 or float32; they may be mapped."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Which rows are in which cell, and whose positives in which list.

    Raises
    ------
    ValueError
        A row is not in one cell, or not in one list; a cell or list is empty.
    """

    order_N: npt.NDArray[np.int32]
    """Rows, cell by cell."""
    start_C: npt.NDArray[np.int64]
    """C + 1 offsets into ``order_N``."""
    listed_N: npt.NDArray[np.int32]
    """Rows, list by list; ascending in each."""
    start_L: npt.NDArray[np.int64]
    """L + 1 offsets into ``listed_N``."""
    mean_LD: npt.NDArray[np.float32]
    """Mean of each list's positives."""

    def __post_init__(self) -> None:
        for row_N, start in ((self.order_N, self.start_C), (self.listed_N, self.start_L)):
            if (np.bincount(row_N, minlength=self.rows) != 1).any():
                raise ValueError("a row is nowhere, or twice")
            if start[0] != 0 or start[-1] != self.rows or (np.diff(start) <= 0).any():
                raise ValueError("offsets do not rise from 0 to all rows")
        if len(self.mean_LD) != len(self.start_L) - 1:
            raise ValueError("means are not of the lists")

    @property
    def rows(self) -> int:
        """N."""
        return len(self.order_N)

    @property
    def count(self) -> int:
        """C."""
        return len(self.start_C) - 1

    def own(self, cell: int) -> npt.NDArray[np.int32]:
        """Return the rows of a cell, close ones close."""
        return self.order_N[self.start_C[cell] : self.start_C[cell + 1]]

    def listed(self, number: int) -> npt.NDArray[np.int32]:
        """Return the rows of a list, ascending."""
        return self.listed_N[self.start_L[number] : self.start_L[number + 1]]

    @property
    def cell_N(self) -> npt.NDArray[np.int32]:
        """Cell of each row."""
        found_N = np.empty(self.rows, np.int32)
        found_N[self.order_N] = np.repeat(np.arange(self.count), np.diff(self.start_C))
        return found_N

    def save(self, draft: Draft) -> None:
        """Write a file a field."""
        for field in fields(self):
            np.save(draft.path(f"{field.name}.npy"), getattr(self, field.name))

    @classmethod
    def load(cls, artifact: Artifact) -> Self:
        """Read them back."""
        files = (artifact.path(f"{field.name}.npy") for field in fields(cls))
        return cls(*(np.load(file, allow_pickle=False) for file in files))


def find_cells(sides: Sides, *, rows: int, unit: int = 1, progress: Progress = silent) -> Cells:
    """Cut a dataset into cells.

    The same vectors give the same cells.

    Parameters
    ----------
    rows
        What a cell should hold at most. All but the last hold the same number, up to a unit more.
    unit
        A cell holds a multiple of this; the last, what is left.
    progress
        Told how many rows are placed, of twice N.

    Raises
    ------
    ValueError
        There are no rows, or a number is not positive.
    """
    total = len(sides[0])
    if min(total, rows, unit) < 1:
        raise ValueError(f"no cells of {rows} rows in {unit}s from {total}")
    size = -(-total // -(-total // rows))  # equal cells
    size = -(-size // unit) * unit
    _, list_N = find_lists(
        partial(_positives, sides),
        rows=total,
        lists=max(1, total // LIST_ROWS),
        progress=lambda done, _: progress(done, 2 * total),
    )
    listed_N, ends = _sorted(list_N)
    start_L = np.append(0, ends)
    mean_LD = np.stack(
        [
            _positives(sides, listed_N[first:stop]).mean(axis=0)
            for first, stop in itertools.pairwise(start_L)
        ]
    )
    order_N = np.arange(total, dtype=np.int32)
    if size < total:
        centre_LD, list_N = find_lists(
            partial(_both, sides),
            rows=total,
            lists=max(1, total * _SPLITS // size),
            progress=lambda done, _: progress(total + done, 2 * total),
        )
        place_L = np.empty(len(centre_LD), np.int64)
        size_L = np.bincount(list_N, minlength=len(centre_LD))
        place_L[_halved(centre_LD, size_L)] = np.arange(len(centre_LD))
        order_N, _ = _sorted(place_L[list_N])
    start_C = np.append(np.arange(0, total, size), total)
    return Cells(order_N, start_C, listed_N, start_L, mean_LD)


def seams(hits_CC: npt.NDArray[np.integer], rounds: int) -> list[list[tuple[int, int]]]:
    """Pair cells up, those that ask for one another most first.

    Parameters
    ----------
    hits_CC
        How many ranks of the rows of one cell are rows of another.

    Returns
    -------
    list of list of (int, int)
        ``rounds`` rounds, none if no cell asks for another. In one, no cell is in two pairs; a pair
        comes again when all have come.
    """
    asked_CC = np.triu(hits_CC + hits_CC.T, 1)
    first, second = np.nonzero(asked_CC)
    best = np.argsort(-asked_CC[first, second], kind="stable")
    every = list(zip(first[best].tolist(), second[best].tolist(), strict=True))
    left, found = every, list[list[tuple[int, int]]]()
    while every and len(found) < rounds:
        chosen: dict[int, tuple[int, int]] = {}
        for pair in left:
            if not chosen.keys() & {*pair}:
                chosen |= dict.fromkeys(pair, pair)
        found.append(list(dict.fromkeys(chosen.values())))
        gone = set(found[-1])
        left = [pair for pair in left if pair not in gone] or every
    return found


def _positives(sides: Sides, at: Any) -> npt.NDArray[np.float32]:
    return np.asarray(sides[1][at].astype(np.float32))


def _both(sides: Sides, at: Any) -> npt.NDArray[np.float32]:
    """Return where rows are: the direction of query + positive."""
    both_XD = sides[0][at].astype(np.float32) + sides[1][at].astype(np.float32)
    length_X1 = np.linalg.norm(both_XD, axis=1, keepdims=True)
    return np.asarray(both_XD / np.maximum(length_X1, np.float32(1e-6)))


def _sorted(
    list_N: npt.NDArray[np.integer],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return rows by list, ascending in each, and where each list that has any ends."""
    size_L = np.bincount(list_N)
    return np.argsort(list_N, kind="stable").astype(np.int32), np.cumsum(size_L[size_L > 0])


def _halved(
    centre_LD: npt.NDArray[np.float32], size_L: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Order lists so that close ones are close: halve along the longest axis, and each half anew.

    Halves are of equal weight in rows. The longest axis is the first principal component.
    """
    done: list[npt.NDArray[np.int64]] = []
    todo = [np.arange(len(centre_LD))]
    while todo:
        part = todo.pop()
        if len(part) == 1:
            done.append(part)
            continue
        weight_X = size_L[part] + 1e-3  # an empty list is somewhere too
        from_mean_XD = centre_LD[part] - np.average(centre_LD[part], axis=0, weights=weight_X)
        weighted_XD = (from_mean_XD * np.sqrt(weight_X)[:, None]).astype(np.float64)
        if len(part) < len(weighted_XD.T):  # the smaller of the two has the same axis
            axis_D = np.linalg.eigh(weighted_XD @ weighted_XD.T)[1][:, -1] @ weighted_XD
        else:
            axis_D = np.linalg.eigh(weighted_XD.T @ weighted_XD)[1][:, -1]
        axis_D *= np.sign(axis_D[np.argmax(np.abs(axis_D))])
        part = part[np.argsort(from_mean_XD @ axis_D, kind="stable")]
        held_X = np.cumsum(size_L[part] + 1e-3)
        cut = int(np.clip(np.searchsorted(held_X, held_X[-1] / 2), 1, len(part) - 1))
        todo += [part[cut:], part[:cut]]
    return np.concatenate(done)
