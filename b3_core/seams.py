"""Communities in cells: each cell by itself, then exchanges across what was cut.

    CelledGraph -> CellCommunities, one a cell  linked, partitioned, exact, within the cell
                -> Seam, pairs of cells         exchanges of rows across what was cut, in rounds
                -> CelledCommunities            the same communities as in one piece would be

What a part holds in memory is ranks and edges of one cell, or of two; and 12 bytes a row of all.

Legend: N rows, C cells, R rows of a part, M ranks, K rows of a community.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numba
import numpy as np
import numpy.typing as npt

from b3_core import balance, cells, communities, graph
from b3_core.artifacts import Address, Draft
from b3_core.celled import CelledGraph, CelledRanks
from b3_core.communities import Labels
from b3_core.config import MiningSpec
from b3_core.embed import DatasetStage
from b3_core.mine import Communities, Graph
from b3_core.progress import Progress
from b3_core.ranking import Ranking
from b3_core.stage import Past, Stage, generator
from b3_core.store import ArtifactStore
from b3_core.swap import Net, refine

VERSION = 2  # of how parts are made and seams are chosen

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
    version: ClassVar[int] = 10 * Communities.version + VERSION

    @property
    def title(self) -> str:  # noqa: D102
        return f"{self.mining.partitioner} communities of {self.dataset}, cell {self.cell}"

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return {**super().settings, "cell": self.cell}

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        found = Linked.of(store, self.graph, np.sort(self.ranks.found(store).own(self.cell)))
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
        draft.counts |= {"rows": len(label_R), "moved": made.moved, "worth": [made.objective]}


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
        seats = found.seats(refined_R)
        np.save(draft.path("seats.npy"), seats)
        first = self.sides[0].size
        draft.counts |= {
            "rows": len(seats_R),
            "moved": int((label_R != refined_R).sum()),
            "worth": [found.worth(side, self.mining) for side in (seats[:first], seats[first:])],
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
        """Return the community of each row, of rows that sit ``k`` to a community; else -1."""
        label_R = np.full(len(self.row_R), -1, np.int32)
        label_R[np.searchsorted(self.row_R, seats_R)] = np.arange(len(seats_R)) // k
        return label_R

    def worth(self, seats_R: Rows, mining: MiningSpec) -> float:
        """Return the objective of communities that have some of the rows."""
        label_R = self.labels(seats_R, mining.k)
        # Every other row is a community of its own.
        other_R = label_R < 0
        label_R[other_R] = len(label_R) + np.flatnonzero(other_R)
        return balance.objective(label_R, self.attract, self.repel, repulsion=mining.repulsion)


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
        start_C = ranks.found(store).start_C
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
                    held[b] = Held(seam.address, size_C[a], size_C[a] + size_C[b], side=1)
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
            gained += each.worth(store)
            progress(done + 1, len(held))
        moved = sum(store.get(part.address).counts["moved"] for wave in waves for part in wave)
        partition = communities.Partition(label_N, k=k, moved=moved, objective=gained)
        self.keep(partition, store, draft)


def run_part(root: str, part: Stage) -> None:
    """Make one part in a worker of one core: the body of a Ray task."""
    numba.set_num_threads(1)
    part.run(ArtifactStore(root))


def _excerpt(store: ArtifactStore, ranks: CelledRanks, row_R: Rows) -> graph.Excerpt:
    """Collect the ranks of some rows from the cells they are from; other rows than these are -1."""
    found = ranks.found(store)
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


def communities_of(table: Ranking, mining: MiningSpec, seed: int) -> Communities:
    """Return the communities of a dataset whose ranks are in one piece, or in cells."""
    if isinstance(table, CelledRanks):
        return CelledCommunities(table.ref, CelledGraph(table.ref, table, mining), mining, seed)
    return Communities(table.ref, Graph(table.ref, table, mining), mining, seed)
