"""Communities in cells: cells that fit together at once, then exchanges across what was cut.

    CelledGraph -> BlockCommunities, some cells each  linked, partitioned, exact, within the block
                -> Seam, pairs of cells of two blocks exchanges of rows across what was cut, rounds
                -> CelledCommunities                  the same as in one piece would be

Ranks take time in the square of the rows, and are cut small; communities take memory in the number
of edges, and are cut as late as that allows. What a part holds in memory is ranks and edges of one
block, or of two cells; and some 30 bytes a row of all.

Legend: N rows, C cells, R rows of a part, M ranks, K rows of a community.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numba
import numpy as np
import numpy.typing as npt

from b3_core import balance, cells, communities, graph
from b3_core.artifacts import PARTS, Address, Draft
from b3_core.celled import CelledGraph, CelledRanks
from b3_core.communities import Labels
from b3_core.config import MiningSpec
from b3_core.dataset_stage import DatasetStage
from b3_core.mine import Communities, Graph
from b3_core.progress import Progress
from b3_core.ranking import Ranking
from b3_core.stage import Past, Stage, generator, parts_cost
from b3_core.store import ArtifactStore
from b3_core.swap import Net, refine

VERSION = 3  # of how parts are made and seams are chosen

#: Cells of a block at most: with 32,768 rows each a million rows, whose edges take some 4 GB.
TOGETHER = 32

#: Rounds of seams: in each, a cell exchanges rows with one other. Of the window partners that one
#: piece keeps, 8 cells of 5,000 drawn rows keep .859 after 1, .926 after 4 and .963 after 7, when
#: all pairs have come; 4 such cells .967 after 3, .980 after 6 and .981 after 9.
SEAM_ROUNDS = 8

Rows = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Held:
    """Some rows, community by community: a stretch of what a part made."""

    address: Address
    first: int
    stop: int
    side: int = 0
    """Which of the part's sides."""

    @property
    def size(self) -> int:
        """How many rows."""
        return self.stop - self.first

    def rows(self, store: ArtifactStore) -> Rows:
        """Load them."""
        seats: Rows = store.get(self.address).array("seats.npy")[self.first : self.stop]
        return seats

    def worth(self, store: ArtifactStore) -> float:
        """Return the objective of these communities."""
        worth: float = store.get(self.address).counts["worth"][self.side]
        return worth


@dataclass(frozen=True)
class _Part(DatasetStage):
    """Communities of some rows, by the edges among them."""

    graph: CelledGraph
    seed: int

    @property
    def ranks(self) -> CelledRanks:
        """What is linked."""
        return self.graph.ranks

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
class BlockCommunities(_Part):
    """Communities of exactly K rows within some cells that follow one another."""

    first: int
    stop: int
    name: ClassVar[str] = "block-communities"
    version: ClassVar[int] = 10 * Communities.version + VERSION
    cores: ClassVar[int] = 4
    unheard: ClassVar[bool] = True

    @property
    def title(self) -> str:  # noqa: D102
        cells = f"cells {self.first} to {self.stop - 1}"
        return f"{self.mining.partitioner} communities of {self.dataset}, {cells}"

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return {**super().settings, "cells": [self.first, self.stop]}

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        found = self.ranks.found(store)
        size_C = np.diff(found.start_C[self.first : self.stop + 1])
        own = [found.own(cell) for cell in range(self.first, self.stop)]
        linked = Linked.of(store, self.graph, np.sort(np.concatenate(own)))
        rng = generator(self.seed, f"communities of cells {self.first} to {self.stop}")
        label_R = communities.find_communities(
            linked.attract, self.mining, rng=rng, repel=linked.repel
        )
        made = balance.balance(
            label_R,
            attract=linked.attract,
            repel=linked.repel,
            group_N=linked.group_R,
            spec=self.mining,
            rng=rng,
            progress=progress,
        )
        seats_R = linked.seats(_by_home(made.label_N, found.cell_N[linked.row_R]))
        np.save(draft.path("seats.npy"), seats_R)
        draft.counts |= {
            "rows": len(label_R),
            "moved": made.moved,
            "worth": linked.worths(seats_R, size_C, self.mining),
        }


@dataclass(frozen=True)
class Seam(_Part):
    """Two cells' communities after exchanges between and within them."""

    number: int
    """Of the round: each draws its own order."""
    sides: tuple[Held, Held]
    name: ClassVar[str] = "seam"
    version: ClassVar[int] = 10 * Communities.version + VERSION

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
        seats_R = found.seats(refined_R)
        np.save(draft.path("seats.npy"), seats_R)
        draft.counts |= {
            "rows": len(seats_R),
            "moved": int((label_R != refined_R).sum()),
            "worth": found.worths(seats_R, [held.size for held in self.sides], self.mining),
        }


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
        table = _excerpt(store, of, row_R)
        p, mining = of.cutoff, of.mining
        attract = graph.link(
            table,
            p=p,
            m=mining.m,
            mode=mining.graph,
            weights=mining.weights,
            unit=store.get(of.address).counts.get("unit"),
        )
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

    def worths(self, seats_R: Rows, sizes: Iterable[int], mining: MiningSpec) -> list[float]:
        """Return the objective of the communities in each of several stretches of seats."""
        label_R = self.labels(seats_R, mining.k)
        own_R = balance.row_objective(label_R, self.attract, self.repel, repulsion=mining.repulsion)
        seated_R = own_R[np.searchsorted(self.row_R, seats_R)]
        stops = np.cumsum(list(sizes))[:-1]
        return [float(part.sum()) for part in np.split(seated_R, stops)]


@dataclass(frozen=True)
class CelledCommunities(Communities):
    """The communities of all cells, after their seams."""

    graph: CelledGraph
    in_parts: ClassVar[bool] = True
    unheard: ClassVar[bool] = False
    version: ClassVar[int] = 1000 * Communities.version + 10 * cells.VERSION + VERSION

    def since(self, past: Past) -> "CelledCommunities":  # noqa: D102
        return self

    def waves(self, store: ArtifactStore) -> Iterator[Sequence[Stage]]:  # noqa: D102
        yield from self.graph.ranks.waves(store)  # their parts are read again, and may be gone
        yield from self.own_waves(store)

    def own_waves(self, store: ArtifactStore) -> Iterator[Sequence[Stage]]:
        """Yield the parts of communities alone; those of ranks must be there."""
        waves, _ = self._course(store)
        yield from waves

    def _course(self, store: ArtifactStore) -> tuple[list[list[_Part]], list[Held]]:
        """Return all waves, and where each cell's communities are in the end."""
        ranks = self.graph.ranks
        start_C = ranks.found(store).start_C
        size_C = np.diff(start_C).tolist()
        count = -(-len(size_C) // TOGETHER)
        edge_B = np.linspace(0, len(size_C), count + 1).round().astype(int).tolist()
        blocks = [
            BlockCommunities(self.ref, self.graph, self.seed, *span)
            for span in itertools.pairwise(edge_B)
        ]
        waves: list[list[_Part]] = [[*blocks]]
        held, block_C = [], []
        for number, block in enumerate(blocks):
            at = 0
            for side, size in enumerate(size_C[block.first : block.stop]):
                held.append(Held(block.address, at, at + size, side))
                block_C.append(number)
                at += size
        if self.mining.swap_rounds:
            hits_CC = np.stack(
                [store.get(each.address).array("hits.npy") for each in ranks.parts(store)]
            )
            hits_CC[np.equal.outer(block_C, block_C)] = 0  # nothing was cut there
            for number, pairs in enumerate(cells.seams(hits_CC, SEAM_ROUNDS)):
                wave = []
                for a, b in pairs:
                    seam = Seam(self.ref, self.graph, self.seed, number, (held[a], held[b]))
                    held[a] = Held(seam.address, 0, size_C[a])
                    held[b] = Held(seam.address, size_C[a], size_C[a] + size_C[b], side=1)
                    wave.append(seam)
                waves.append([*wave])
        return waves, held

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        waves, held = self._course(store)
        k = self.mining.k
        label_N = _labels([each.rows(store) for each in held], k)
        own = [store.get(part.address) for part in waves[0]]
        first_N = _labels([made.array("seats.npy") for made in own], k)
        # Within blocks from what was found there, and by seams: some are counted twice.
        moved = sum(made.counts["moved"] for made in own) + balance.moved(first_N, label_N)
        partition = communities.Partition(
            label_N,
            k=k,
            moved=min(moved, len(label_N)),
            objective=sum(each.worth(store) for each in held),
        )
        self.keep(partition, store, draft)
        draft.counts[PARTS] = parts_cost([part for wave in waves for part in wave], store)


def _labels(seats: Sequence[Rows], k: int) -> Labels:
    """Return the community of each row, of cells whose rows sit ``k`` to a community."""
    label_N = np.empty(sum(len(seats_R) for seats_R in seats), np.int32)
    base = 0
    for seats_R in seats:
        label_N[seats_R] = base + np.arange(len(seats_R)) // k
        base += -(-len(seats_R) // k)
    return label_N


def _by_home(label_R: Labels, cell_R: npt.NDArray[np.int32]) -> Labels:
    """Sort communities by the cells that their rows are from; the short one stays the last."""
    size_C = np.bincount(label_R)
    home_C = np.bincount(label_R, cell_R) / size_C
    home_C[size_C < size_C.max()] = np.inf
    number_C = np.empty(len(size_C), np.int32)
    number_C[np.argsort(home_C, kind="stable")] = np.arange(len(size_C))
    numbered: Labels = number_C[label_R]
    return numbered


def run_part(root: str, part: Stage) -> None:
    """Make one part on as many threads as it has cores: the body of a Ray task."""
    numba.set_num_threads(min(part.cores, numba.config.NUMBA_NUM_THREADS))
    part.run(ArtifactStore(root))


def _excerpt(store: ArtifactStore, of: CelledGraph, row_R: Rows) -> graph.Excerpt:
    """Collect the window of some rows from the cells they are from; other rows than these are -1.

    Scores are there if edges are weighed by them.
    """
    found = of.ranks.found(store)
    place_N, local_N = np.empty(found.rows, np.int32), np.full(found.rows + 1, -1, np.int32)
    place_N[found.order_N] = np.arange(found.rows, dtype=np.int32)
    local_N[row_R] = np.arange(len(row_R), dtype=np.int32)  # the last is for no row, -1
    at_R = place_N[row_R]
    cell_R = np.searchsorted(found.start_C, at_R, side="right") - 1
    width = min(of.cutoff + of.mining.m, found.rows - 1)
    scored = of.mining.weights == "score"
    near_RM = np.empty((len(row_R), width), np.int32)
    score_RM = np.zeros((len(row_R), width) if scored else (1, 1), np.float32)
    for part in of.ranks.parts(store):
        here = np.flatnonzero(cell_R == part.cell)
        if not len(here):
            continue
        made, at = store.get(part.address), at_R[here] - found.start_C[part.cell]
        near_RM[here] = local_N[made.array("neighbour.npy")[at, :width]]
        if scored:
            score_RM[here] = made.array("score.npy")[at, :width]
    return graph.Excerpt(near_RM, np.broadcast_to(score_RM, near_RM.shape))


def communities_of(table: Ranking, mining: MiningSpec, seed: int) -> Communities:
    """Return the communities of a dataset whose ranks are in one piece, or in cells."""
    if isinstance(table, CelledRanks):
        return CelledCommunities(table.ref, CelledGraph(table.ref, table, mining), mining, seed)
    return Communities(table.ref, Graph(table.ref, table, mining), mining, seed)
