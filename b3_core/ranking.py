"""Rankings as stages: what a query finds near it, and what graph follows from that.

Vectors -> Ranks (rows)  or  LabelRanks (labels, where the task is classification)

Everything that differs between the two is here; the stages after them do not ask which it was.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from b3_core import carried, graph, labels, neighbours, pairs, quality, search, teacher
from b3_core.artifacts import Address, Draft
from b3_core.communities import Partition
from b3_core.config import MiningSpec
from b3_core.dataset_stage import DatasetStage, Earlier, PairsRef, begun_with
from b3_core.progress import Progress
from b3_core.stage import Past, generator
from b3_core.store import ArtifactStore

Graphs = tuple[graph.CsrGraph, graph.CsrGraph]

# Ranks kept beyond those asked for. When one row in a hundred goes, a row loses 1.5 of 146 ranks;
# one that lost more than are spare is searched for anew.
SPARE = 16


@dataclass(frozen=True)
class Ranking(DatasetStage):
    """What a query finds near it."""

    vectors: Address
    earlier: Earlier | None = field(default=None, kw_only=True)
    """Ranks of other rows to begin with: only what changed is looked for."""

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {"pairs": self.ref.digest, "embeddings": self.vectors.fingerprint}

    def since(self, past: Past, earlier: Earlier | None) -> "Ranking":
        """Return the ranking with as much as can be from the one of ``earlier``; or this one."""
        return self

    @abstractmethod
    def link_settings(self, mining: MiningSpec) -> Mapping[str, Any]:
        """Return what decides the graphs, of all that CONFIG says."""

    def partitioning(self, mining: MiningSpec, attract: graph.CsrGraph) -> MiningSpec:
        """Return the mining as it is for communities of this graph, whatever CONFIG left open."""
        return mining

    @abstractmethod
    def link(self, store: ArtifactStore, mining: MiningSpec) -> Graphs:
        """Build the graph of rows that attract one another, and that of those too hard."""

    @abstractmethod
    def describe(
        self, store: ArtifactStore, partition: Partition, mining: MiningSpec
    ) -> dict[str, float]:
        """Count the partners of a row in its community, beside the same sizes at random."""


@dataclass(frozen=True)
class Ranks(Ranking):
    """The best ``width`` positives of every query, own row and group excluded."""

    width: int
    p: int = 0
    method: search.Method = "exact"
    name: ClassVar[str] = "ranks"
    version: ClassVar[int] = neighbours.VERSION

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        if self.method == "exact":
            return {"width": self.width}
        return {"width": self.width, "method": self.method, "p": self.p}

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {**super().inputs, **begun_with(self.earlier)}

    def since(self, past: Past, earlier: Earlier | None) -> Ranking:  # noqa: D102
        if earlier is None or self.method != "exact":
            return self
        then = {"pairs": earlier.ref.digest, "embeddings": earlier.address.fingerprint}
        found = past.last(self, then)
        return replace(self, earlier=Earlier(earlier.ref, found)) if found else self

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        vectors = teacher.Embeddings.load(store.get(self.vectors))
        sides = vectors.query_ND, vectors.positive_ND
        group_N = self.ref.group_N(store)
        ranks = neighbours.rank(
            *sides,
            group_N=group_N,
            width=self.width,
            spare=SPARE,
            ahead=self._carried(store),
            method=self.method,
            progress=progress,
        )
        ranks.save(draft)
        width = min(self.width, self.ref.rows - 1)
        draft.counts |= {"rows": self.ref.rows, "width": width}
        if self.method != "exact":
            draft.counts["window_recall"] = neighbours.window_recall(
                ranks,
                *sides,
                group_N=group_N,
                p=self.p,
                m=max(width - self.p, 0),
                rng=generator(0, "recall"),
            )

    def _carried(self, store: ArtifactStore) -> carried.Carried | None:
        if self.earlier is None:
            return None
        now, then = self.ref.table(store), self.earlier.ref.table(store)
        before_N = pairs.rows_before(now, then)
        return carried.Carried(
            neighbours.RankTable.load(store.get(self.earlier.address)),
            self.width,
            before_N,
            carried.parted(then.group_N, now.group_N, before_N),
        )

    def link_settings(self, mining: MiningSpec) -> Mapping[str, Any]:  # noqa: D102
        chosen = mining.model_dump(include={"m", "graph", "weights"})
        return {"p": self._cutoff(mining), **chosen}

    def link(self, store: ArtifactStore, mining: MiningSpec) -> Graphs:  # noqa: D102
        ranks = neighbours.RankTable.load(store.get(self.address))
        p = self._cutoff(mining)
        attract = graph.link(ranks, p=p, m=mining.m, mode=mining.graph, weights=mining.weights)
        return attract, graph.too_hard(ranks, p=p)

    def describe(  # noqa: D102
        self, store: ArtifactStore, partition: Partition, mining: MiningSpec
    ) -> dict[str, float]:
        ranks = neighbours.RankTable.load(store.get(self.address))
        group_N = self.ref.group_N(store)
        return quality.describe(
            partition, ranks, p=self._cutoff(mining), m=mining.m, group_N=group_N
        )

    def _cutoff(self, mining: MiningSpec) -> int:
        return mining.cutoff(self.ref.spec.task)


@dataclass(frozen=True)
class LabelRanks(Ranking):
    """The nearest share of the other labels, for every query of a classification."""

    share: float
    name: ClassVar[str] = "labels"
    version: ClassVar[int] = labels.VERSION

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return {"share": self.share}

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        vectors = teacher.Embeddings.load(store.get(self.vectors))
        ranks = labels.rank_labels(
            vectors.query_ND,
            vectors.positive_ND,
            group_N=self.ref.group_N(store),
            share=self.share,
            progress=progress,
        )
        ranks.save(draft)
        draft.counts |= {"rows": self.ref.rows, "labels": ranks.labels, "kept": ranks.kept}

    def link_settings(self, mining: MiningSpec) -> Mapping[str, Any]:  # noqa: D102
        return {"m": mining.m}

    def partitioning(self, mining: MiningSpec, attract: graph.CsrGraph) -> MiningSpec:  # noqa: D102
        own = labels.resolution(attract) if mining.resolution is None else mining.resolution
        return mining.model_copy(update={"resolution": own})

    def link(self, store: ArtifactStore, mining: MiningSpec) -> Graphs:  # noqa: D102
        near = labels.LabelRanks.load(store.get(self.address))
        # A thinned graph is drawn; the seed of a run is not for what the runs share.
        attract = labels.link_labels(near, edges=mining.m, rng=generator(0, "labels"))
        return attract, graph.CsrGraph.empty(attract.rows)

    def describe(  # noqa: D102
        self, store: ArtifactStore, partition: Partition, mining: MiningSpec
    ) -> dict[str, float]:
        near = labels.LabelRanks.load(store.get(self.address))
        drawn_N = generator(0, "quality").permutation(partition.label_N)
        found, drawn = (
            labels.describe_labels(label_N, near) for label_N in (partition.label_N, drawn_N)
        )
        return {**found, "too_hard": 0.0, **{f"random_{k}": v for k, v in drawn.items()}}


def ranking_of(ref: PairsRef, vectors: Address, mining: MiningSpec) -> Ranking:
    """Return the ranking that a dataset's task asks for."""
    if ref.spec.task == "classification":
        return LabelRanks(ref, vectors, mining.label_share)
    cutoff = mining.cutoff(ref.spec.task)
    return Ranks(ref, vectors, cutoff + mining.m, cutoff, mining.search)
