"""Mining in cells: a dataset of any size, piece by piece, in memory that a piece needs.

    Vectors -> CellsOf                          which rows are close: cells of S rows
            -> CellRanks, one a cell            ranks of its queries, among the positives of all
            -> CelledRanks                      the same table as in one piece, put together
    CelledRanks -> CelledGraph                  counts of its edges: nobody holds them all
                -> CellCommunities, one a cell  linked, partitioned, exact, within the cell
                -> Seam, pairs of cells         exchanges of rows across what was cut, in rounds
                -> CelledCommunities            the same communities as in one piece would be

Parts are artifacts of their own: they are made at once, wherever there is room, and what is there
after a crash is not made again. What a part holds in memory is vectors, ranks and edges of one
cell, or of two; and 12 bytes a row of all, to know where rows are.

Legend: N rows, C cells, R rows of a part, M ranks, K rows of a community.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numba
import numpy as np
import numpy.typing as npt

from b3_core import balance, cells, communities, edges, graph, neighbours, probing, ranking
from b3_core.artifacts import Address, Draft
from b3_core.communities import Labels
from b3_core.config import MiningSpec
from b3_core.embed import DatasetStage, Earlier, PairsRef
from b3_core.mine import Communities, Graph
from b3_core.progress import Progress
from b3_core.ranking import SPARE, Ranking, Ranks
from b3_core.stage import Past, Stage, generator
from b3_core.store import ArtifactStore
from b3_core.swap import Net, refine

VERSION = 1  # of how seams are chosen

#: Rounds of seams: in each, a cell exchanges rows with one other. Of the window partners that one
#: piece keeps, 8 cells of 5,000 drawn rows keep .859 after 1, .926 after 4 and .963 after 7, when
#: all pairs have come; 4 such cells .967 after 3, .980 after 6 and .981 after 9.
SEAM_ROUNDS = 8

Rows = npt.NDArray[np.int32]


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
    name: ClassVar[str] = "cell-ranks"
    version: ClassVar[int] = 100 * probing.VERSION + neighbours.VERSION

    @property
    def title(self) -> str:  # noqa: D102
        return f"ranks of {self.dataset}, cell {self.cell}"

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return {"cell": self.cell, "width": self.width}

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {"pairs": self.ref.digest, "cells": self.cells.address.fingerprint}

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        found = cells.Cells.load(store.get(self.cells.address))
        neighbour_RM, score_RM = probing.rank_cell(
            _sides(store, self.cells.vectors),
            found,
            self.cell,
            group_N=self.ref.group_N(store),
            width=self.width,
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
    in_parts: ClassVar[bool] = True
    version: ClassVar[int] = 1000 * cells.VERSION + CellRanks.version

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return {"width": self.width, "p": self.p, "cell_rows": self.cell_rows, "unit": self.unit}

    @property
    def cells(self) -> CellsOf:
        """The cells ranked."""
        return CellsOf(self.ref, self.vectors, self.cell_rows, self.unit)

    def since(self, past: Past, earlier: Earlier | None) -> Ranking:  # noqa: D102
        return self  # cells of other rows are other cells

    def parts(self, store: ArtifactStore) -> list[CellRanks]:
        """Return the ranks of each cell; the cells must be there."""
        count = store.get(self.cells.address).counts["cells"]
        width = min(self.width + SPARE, self.ref.rows - 1)
        return [CellRanks(self.ref, self.cells, cell, width) for cell in range(count)]

    def waves(self, store: ArtifactStore) -> Iterator[Sequence[Stage]]:  # noqa: D102
        yield [self.cells]
        yield self.parts(store)

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        found = cells.Cells.load(store.get(self.cells.address))
        parts = self.parts(store)
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

    version: ClassVar[int] = 10 * Graph.version + 1

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        table_NM = store.get(self.ranks.address).array("neighbour.npy")
        p, mutual = self.cutoff, self.mining.graph == "mutual"
        found = edges.count_edges(table_NM[:, p : p + self.mining.m])
        draft.counts |= {
            "rows": self.ref.rows,
            "edges": found.mutual if mutual else found.union,
            "too_hard": edges.count_edges(table_NM[:, :p]).union,
            "isolated": found.alone_mutual if mutual else found.alone_union,
        }


@dataclass(frozen=True)
class Held:
    """Some rows, community by community: a stretch of what a part made."""

    address: Address
    first: int
    stop: int

    def rows(self, store: ArtifactStore) -> Rows:
        """Load them."""
        seats: Rows = store.get(self.address).array("seats.npy")[self.first : self.stop]
        return seats


@dataclass(frozen=True)
class _Part(DatasetStage):
    """Communities of some rows, by the edges among them."""

    graph: CelledGraph
    seed: int

    @property
    def ranks(self) -> CelledRanks:
        """What is linked."""
        ranks = self.graph.ranks
        assert isinstance(ranks, CelledRanks)
        return ranks

    @property
    def mining(self) -> MiningSpec:
        """How."""
        return self.graph.mining

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        # As one piece would have them: what decides the graph is in the graph's fingerprint.
        return Communities(self.ref, self.graph, self.mining, self.seed).settings

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {"pairs": self.ref.digest, "graph": self.graph.address.fingerprint}


@dataclass(frozen=True)
class CellCommunities(_Part):
    """Communities of exactly K rows within one cell."""

    cell: int
    name: ClassVar[str] = "cell-communities"
    version: ClassVar[int] = Communities.version

    @property
    def title(self) -> str:  # noqa: D102
        return f"{self.mining.partitioner} communities of {self.dataset}, cell {self.cell}"

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return {**super().settings, "cell": self.cell}

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        found = Linked.of(store, self.graph, np.sort(_cells(store, self.ranks).own(self.cell)))
        rng = generator(self.seed, f"communities of cell {self.cell}")
        label_R = communities.find_communities(
            found.attract, self.mining, rng=rng, repel=found.repel
        )
        made = balance.balance(
            label_R,
            attract=found.attract,
            repel=found.repel,
            group_N=found.group_R,
            spec=self.mining,
            rng=rng,
            progress=progress,
        )
        np.save(draft.path("seats.npy"), found.seats(made.label_N))
        draft.counts |= {"rows": len(label_R), "moved": made.moved}


@dataclass(frozen=True)
class Seam(_Part):
    """Two cells' communities after exchanges between and within them."""

    number: int
    """Of the round: each draws its own order."""
    sides: tuple[Held, Held]
    name: ClassVar[str] = "seam"
    version: ClassVar[int] = Communities.version

    @property
    def title(self) -> str:  # noqa: D102
        return f"{super().title}, round {self.number}"

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        spans = [[held.first, held.stop] for held in self.sides]
        return {**super().settings, "round": self.number, "spans": spans}

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        first, second = (held.address.fingerprint for held in self.sides)
        return {**super().inputs, "first": first, "second": second}

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        seats_R = np.concatenate([held.rows(store) for held in self.sides])
        found = Linked.of(store, self.graph, np.sort(seats_R))
        label_R = found.labels(seats_R, self.mining.k)
        net = Net.of(
            found.attract, found.repel, group_N=found.group_R, repulsion=self.mining.repulsion
        )
        refined_R = refine(
            label_R,
            net,
            rounds=self.mining.swap_rounds,
            rng=generator(self.seed, f"seam {self.number}"),
            progress=progress,
            evenness=self.mining.evenness,
        )
        np.save(draft.path("seats.npy"), found.seats(refined_R))
        draft.counts |= {"rows": len(seats_R), "moved": int((label_R != refined_R).sum())}


@dataclass(frozen=True, eq=False)
class Linked:
    """Some rows and the edges among them; rows are numbered in ascending order."""

    row_R: Rows
    attract: graph.CsrGraph
    repel: graph.CsrGraph
    group_R: npt.NDArray[np.int32]

    @classmethod
    def of(cls, store: ArtifactStore, of: CelledGraph, row_R: Rows) -> "Linked":
        """Link rows as their ranks say, which lie with the cells they are from."""
        assert isinstance(of.ranks, CelledRanks)
        table = _excerpt(store, of.ranks, row_R)
        p, mining = of.cutoff, of.mining
        attract = graph.link(table, p=p, m=mining.m, mode=mining.graph, weights=mining.weights)
        group_R = of.ref.group_N(store)[row_R]
        return cls(row_R, attract, graph.too_hard(table, p=p), group_R)

    def seats(self, label_R: Labels) -> Rows:
        """Return the rows community by community, ascending in each."""
        return self.row_R[np.argsort(label_R, kind="stable")]

    def labels(self, seats_R: Rows, k: int) -> Labels:
        """Return the community of each row, of rows that sit ``k`` to a community."""
        label_R = np.empty(len(seats_R), np.int32)
        label_R[np.searchsorted(self.row_R, seats_R)] = np.arange(len(seats_R)) // k
        return label_R


@dataclass(frozen=True)
class CelledCommunities(Communities):
    """The communities of all cells, after their seams."""

    in_parts: ClassVar[bool] = True
    version: ClassVar[int] = 1000 * Communities.version + 10 * cells.VERSION + VERSION

    @cached_property
    def celled(self) -> CelledGraph:
        """The graph, as parts know it."""
        assert isinstance(self.graph, CelledGraph)
        return self.graph

    def since(self, past: Past) -> "CelledCommunities":  # noqa: D102
        return self

    def waves(self, store: ArtifactStore) -> Iterator[Sequence[Stage]]:  # noqa: D102
        waves, _ = self._course(store)
        yield from waves

    def _course(self, store: ArtifactStore) -> tuple[list[list[_Part]], list[Held]]:
        """Return all waves, and where each cell's communities are in the end."""
        ranks = self.celled.ranks
        assert isinstance(ranks, CelledRanks)
        start_C = _cells(store, ranks).start_C
        first = [
            CellCommunities(self.ref, self.celled, self.seed, cell)
            for cell in range(len(start_C) - 1)
        ]
        waves: list[list[_Part]] = [[*first]]
        size_C = np.diff(start_C).tolist()
        held = [Held(part.address, 0, size) for part, size in zip(first, size_C, strict=True)]
        if self.mining.swap_rounds:
            hits_CC = np.stack(
                [store.get(each.address).array("hits.npy") for each in ranks.parts(store)]
            )
            for number, pairs in enumerate(cells.seams(hits_CC, SEAM_ROUNDS)):
                wave = []
                for a, b in pairs:
                    seam = Seam(self.ref, self.celled, self.seed, number, (held[a], held[b]))
                    held[a] = Held(seam.address, 0, size_C[a])
                    held[b] = Held(seam.address, size_C[a], size_C[a] + size_C[b])
                    wave.append(seam)
                waves.append([*wave])
        return waves, held

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        waves, held = self._course(store)
        k = self.mining.k
        label_N = np.empty(self.ref.rows, np.int32)
        gained, base = 0.0, 0
        for done, each in enumerate(held):
            seats_R = each.rows(store)
            label_N[seats_R] = base + np.arange(len(seats_R)) // k
            base += -(-len(seats_R) // k)
            gained += self._objective(store, seats_R)
            progress(done + 1, len(held))
        moved = sum(store.get(part.address).counts["moved"] for wave in waves for part in wave)
        partition = communities.Partition(label_N, k=k, moved=moved, objective=gained)
        self.keep(partition, store, draft)

    def _objective(self, store: ArtifactStore, seats_R: Rows) -> float:
        found = Linked.of(store, self.celled, np.sort(seats_R))
        return balance.objective(
            found.labels(seats_R, self.mining.k),
            found.attract,
            found.repel,
            repulsion=self.mining.repulsion,
        )


def run_part(root: str, part: Stage) -> None:
    """Make one part in a worker of one core: the body of a Ray task."""
    numba.set_num_threads(1)
    part.run(ArtifactStore(root))


def _sides(store: ArtifactStore, vectors: Address) -> cells.Sides:
    made = store.get(vectors)
    return made.array("query.npy"), made.array("positive.npy")


def _cells(store: ArtifactStore, ranks: CelledRanks) -> cells.Cells:
    return cells.Cells.load(store.get(ranks.cells.address))


def _excerpt(store: ArtifactStore, ranks: CelledRanks, row_R: Rows) -> graph.Excerpt:
    """Collect the ranks of some rows from the cells they are from; other rows than these are -1."""
    found = _cells(store, ranks)
    place_N = np.empty(found.rows, np.int32)
    place_N[found.order_N] = np.arange(found.rows, dtype=np.int32)
    at_R = place_N[row_R]
    cell_R = np.searchsorted(found.start_C, at_R, side="right") - 1
    parts = ranks.parts(store)
    width = parts[0].width
    neighbour_RM, score_RM = (
        np.empty((len(row_R), width), np.int32),
        np.empty((len(row_R), width), np.float32),
    )
    for cell in np.unique(cell_R):
        here = np.flatnonzero(cell_R == cell)
        made, at = store.get(parts[cell].address), at_R[here] - found.start_C[cell]
        neighbour_RM[here], score_RM[here] = (
            made.array("neighbour.npy")[at],
            made.array("score.npy")[at],
        )
    local = np.searchsorted(row_R, neighbour_RM)
    local[local == len(row_R)] = 0
    local_RM = np.where(row_R[local] == neighbour_RM, local, -1).astype(np.int32)
    return graph.Excerpt(local_RM, score_RM)


def ranking_of(
    ref: PairsRef, vectors: Address, mining: MiningSpec, *, among: Sequence[MiningSpec] = ()
) -> Ranking:
    """Return the ranking that a dataset's task and size ask for.

    ``among`` are the minings that share one table of ranks, which is as wide as the widest needs.
    """
    found = ranking.ranking_of(ref, vectors, mining, among=among)
    if mining.cell_rows is None or ref.rows <= mining.cell_rows or not isinstance(found, Ranks):
        return found
    unit = math.lcm(*(each.k for each in (mining, *among)))
    return CelledRanks(ref, vectors, found.width, found.p, cell_rows=mining.cell_rows, unit=unit)


def communities_of(table: Ranking, mining: MiningSpec, seed: int) -> Communities:
    """Return the communities of a dataset whose ranks are in one piece, or in cells."""
    if isinstance(table, CelledRanks):
        return CelledCommunities(table.ref, CelledGraph(table.ref, table, mining), mining, seed)
    return Communities(table.ref, Graph(table.ref, table, mining), mining, seed)
