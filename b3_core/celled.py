"""Ranks in cells: a dataset of any size, piece by piece, in memory that a piece needs.

    Vectors -> CellsOf                   which rows are close: cells of S rows
            -> CellRanks, one a cell     ranks of its queries, among the positives of all
            -> CelledRanks               the same table as in one piece, put together
            -> CelledGraph               counts of its edges: nobody holds them all

Their communities are in :mod:`b3_core.seams`. Parts are artifacts of their own: they are made at
once, wherever there is room, and what is there after a crash is not made again. What a part holds
in memory is vectors and ranks of one cell; and some 30 bytes a row of all, to know where rows are.

Legend: N rows, C cells, R rows of a part, M ranks.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from b3_core import cells, edges, neighbours, probing, ranking
from b3_core.artifacts import PARTS, Address, Draft
from b3_core.cells import Cells
from b3_core.config import MiningSpec
from b3_core.dataset_stage import DatasetStage, Earlier, PairsRef
from b3_core.mine import Graph
from b3_core.progress import Progress
from b3_core.ranking import SPARE, Ranking, Ranks
from b3_core.stage import Past, Stage, generator, parts_cost
from b3_core.store import ArtifactStore


@dataclass(frozen=True)
class CellsOf(DatasetStage):
    """Cells of a dataset's rows, by their vectors."""

    vectors: Address
    rows: int
    unit: int
    name: ClassVar[str] = "cells"
    version: ClassVar[int] = cells.VERSION

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102 - the base class says it
        return {"rows": self.rows, "unit": self.unit}

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {"embeddings": self.vectors.fingerprint}

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        found = cells.find_cells(
            _sides(store, self.vectors), rows=self.rows, unit=self.unit, progress=progress
        )
        found.save(draft)
        draft.counts |= {"rows": found.rows, "cells": found.count, "lists": len(found.mean_LD)}


@dataclass(frozen=True)
class CellRanks(DatasetStage):
    """The best positives of every query of one cell."""

    cells: CellsOf
    cell: int
    width: int
    lists: int
    name: ClassVar[str] = "cell-ranks"
    version: ClassVar[int] = 100 * probing.VERSION + neighbours.VERSION

    @property
    def title(self) -> str:  # noqa: D102
        return f"ranks of {self.dataset}, cell {self.cell}"

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return {"cell": self.cell, "width": self.width, "lists": self.lists}

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {"pairs": self.ref.digest, "cells": self.cells.address.fingerprint}

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        found = Cells.load(store.get(self.cells.address))
        neighbour_RM, score_RM = probing.rank_cell(
            _sides(store, self.cells.vectors),
            found,
            self.cell,
            group_N=self.ref.group_N(store),
            width=self.width,
            lists=self.lists,
            progress=progress,
        )
        np.save(draft.path("neighbour.npy"), neighbour_RM)
        np.save(draft.path("score.npy"), score_RM)
        near = found.cell_N[neighbour_RM[neighbour_RM >= 0]]
        np.save(draft.path("hits.npy"), np.bincount(near, minlength=found.count))
        draft.counts["rows"] = len(neighbour_RM)


@dataclass(frozen=True)
class CelledRanks(Ranks):
    """The ranks of all cells, put together."""

    cell_rows: int = 0
    unit: int = 1
    lists: int = 1
    in_parts: ClassVar[bool] = True
    version: ClassVar[int] = 1000 * cells.VERSION + CellRanks.version

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return {
            "width": self.width,
            "p": self.p,
            "cell_rows": self.cell_rows,
            "unit": self.unit,
            "lists": self.lists,
        }

    @property
    def cells(self) -> CellsOf:
        """The cells ranked."""
        return CellsOf(self.ref, self.vectors, self.cell_rows, self.unit)

    def found(self, store: ArtifactStore) -> Cells:
        """Load the cells."""
        return Cells.load(store.get(self.cells.address))

    def since(self, past: Past, earlier: Earlier | None) -> Ranking:  # noqa: D102
        return self  # cells of other rows are other cells

    def parts(self, store: ArtifactStore) -> list[CellRanks]:
        """Return the ranks of each cell; the cells must be there."""
        count = store.get(self.cells.address).counts["cells"]
        width = min(self.width + SPARE, self.ref.rows - 1)
        return [CellRanks(self.ref, self.cells, cell, width, self.lists) for cell in range(count)]

    def waves(self, store: ArtifactStore) -> Iterator[Sequence[Stage]]:  # noqa: D102
        yield [self.cells]
        yield self.parts(store)

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        found, parts = self.found(store), self.parts(store)
        shape = found.rows, parts[0].width
        for name, kind in (("neighbour.npy", np.int32), ("score.npy", np.float32)):
            whole_NM = np.lib.format.open_memmap(draft.path(name), "w+", kind, shape)
            for part in parts:
                whole_NM[found.own(part.cell)] = store.get(part.address).array(name)
            whole_NM.flush()
        draft.counts |= {
            "rows": found.rows,
            "width": min(self.width, found.rows - 1),
            "cells": found.count,
            "window_recall": self._recall(store, draft),
            PARTS: parts_cost([self.cells, *parts], store),
        }

    def _recall(self, store: ArtifactStore, draft: Draft) -> float:
        ranks = neighbours.RankTable(
            *(np.load(draft.path(f"{part}.npy"), mmap_mode="r") for part in ("neighbour", "score"))
        )
        width = min(self.width, self.ref.rows - 1)
        return probing.window_recall(
            ranks.neighbour_NM,
            _sides(store, self.vectors),
            group_N=self.ref.group_N(store),
            window=slice(min(self.p, width), width),
            rng=generator(0, "recall"),
        )


@dataclass(frozen=True)
class CelledGraph(Graph):
    """What a graph of all cells would hold, counted."""

    ranks: CelledRanks
    version: ClassVar[int] = 10 * Graph.version + 2

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        table_NM = store.get(self.ranks.address).array("neighbour.npy")
        p, mutual = self.cutoff, self.mining.graph == "mutual"
        window = slice(p, p + self.mining.m)
        found = edges.count_edges(table_NM[:, window])
        if self.mining.weights == "score":
            score_NM = store.get(self.ranks.address).array("score.npy")
            draft.counts["unit"] = edges.mean_score(table_NM[:, window], score_NM[:, window])
        draft.counts |= {
            "rows": self.ref.rows,
            "edges": found.mutual if mutual else found.union,
            "too_hard": edges.count_edges(table_NM[:, :p]).union,
            "isolated": found.alone_mutual if mutual else found.alone_union,
        }


def ranking_of(
    ref: PairsRef, vectors: Address, mining: MiningSpec, *, among: Sequence[MiningSpec] = ()
) -> Ranking:
    """Return the ranking that a dataset's task and size ask for.

    ``among`` are the minings that share the ranks of cells, which are as wide as the widest needs
    and whose cells are cut so that every k divides them. In one piece each width is a table of its
    own: an arm that is added changes nothing of what the others were mined to.
    """
    found = ranking.ranking_of(ref, vectors, mining)
    if mining.cell_rows is None or ref.rows <= mining.cell_rows or not isinstance(found, Ranks):
        return found
    unit = math.lcm(*(each.k for each in (mining, *among)))
    return CelledRanks(
        ref,
        vectors,
        max(each.cutoff(ref.spec.task) + each.m for each in (mining, *among)),
        found.p,
        cell_rows=mining.cell_rows,
        unit=unit,
        lists=mining.cell_lists,
    )


def _sides(store: ArtifactStore, vectors: Address) -> cells.Sides:
    made = store.get(vectors)
    return made.array("query.npy"), made.array("positive.npy")
