"""The stages that turn vectors into a manifest.

Vectors -> Ranks -> Graph -> Communities (one an arm and seed) -> ManifestOf (all datasets)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, ClassVar

from b3_core import balance, batches, communities, graph, manifest, neighbours, quality, teacher
from b3_core.artifacts import Address, Draft
from b3_core.config import BatchSpec, MiningSpec
from b3_core.embed import DatasetStage, PairsRef
from b3_core.progress import Progress
from b3_core.stage import Stage, generator
from b3_core.store import ArtifactStore

_LIBRARIES = (
    "b3-batches",
    "numpy",
    "scipy",
    "igraph",
    "leidenalg",
    "pymetis",
    "numba",
    "faiss-cpu",
    "faiss-gpu",
)


@dataclass(frozen=True)
class Ranks(DatasetStage):
    """The best ``width`` positives of every query, own row and group excluded."""

    vectors: Address
    width: int
    name: ClassVar[str] = "ranks"
    version: ClassVar[int] = neighbours.VERSION

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return {"width": self.width}

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {"pairs": self.ref.digest, "embeddings": self.vectors.fingerprint}

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        vectors = teacher.Embeddings.load(store.get(self.vectors))
        ranks = neighbours.rank(
            vectors.query_ND,
            vectors.positive_ND,
            group_N=self.ref.table(store).group_N,
            width=self.width,
            progress=progress,
        )
        ranks.save(draft)
        draft.counts |= {"rows": self.ref.rows, "width": ranks.neighbour_NM.shape[1]}


@dataclass(frozen=True)
class Graph(DatasetStage):
    """The window graph, and beside it the graph of pairs that are too hard."""

    ranks: Ranks
    mining: MiningSpec
    name: ClassVar[str] = "graph"
    version: ClassVar[int] = graph.VERSION

    @property
    def cutoff(self) -> int:
        """The p of this dataset."""
        return self.mining.cutoff(self.ref.spec.task)

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return {"p": self.cutoff, "m": self.mining.m, "graph": self.mining.graph}

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {"ranks": self.ranks.address.fingerprint}

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        ranks = neighbours.RankTable.load(store.get(self.ranks.address))
        attract = graph.link(ranks, p=self.cutoff, m=self.mining.m, mode=self.mining.graph)
        repel = graph.too_hard(ranks, p=self.cutoff)
        attract.save(draft, "attract")
        repel.save(draft, "repel")
        draft.counts |= {
            "rows": self.ref.rows,
            "edges": attract.indices.size // 2,
            "too_hard": repel.indices.size // 2,
            "isolated": int((attract.indptr[1:] == attract.indptr[:-1]).sum()),
        }


@dataclass(frozen=True)
class Communities(DatasetStage):
    """Communities of exactly k rows, by one partitioner and one seed."""

    graph: Graph
    mining: MiningSpec
    seed: int
    name: ClassVar[str] = "communities"
    version: ClassVar[int] = 1000 * communities.VERSION + balance.VERSION

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return {**self.mining.model_dump(exclude={"p", "m", "graph"}), "seed": self.seed}

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {"pairs": self.ref.digest, "graph": self.graph.address.fingerprint}

    @property
    def title(self) -> str:  # noqa: D102
        return f"{self.mining.partitioner} {super().title}, seed {self.seed}"

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        edges = store.get(self.graph.address)
        attract = graph.CsrGraph.load(edges, "attract")
        label_N = communities.find_communities(
            attract, self.mining, rng=generator(self.seed, "communities")
        )
        group_N = self.ref.table(store).group_N
        partition = balance.balance(
            label_N,
            attract=attract,
            repel=graph.CsrGraph.load(edges, "repel"),
            group_N=group_N,
            spec=self.mining,
            rng=generator(self.seed, "balance"),
            progress=progress,
        )
        partition.save(draft)
        ranks = neighbours.RankTable.load(store.get(self.graph.ranks.address))
        draft.counts |= quality.describe(
            partition, ranks, p=self.graph.cutoff, m=self.mining.m, group_N=group_N
        )
        draft.counts |= {"moved": partition.moved, "objective": partition.objective}


@dataclass(frozen=True)
class ManifestOf(Stage):
    """Batches of every epoch, from the communities of all datasets."""

    pipeline: str
    partitions: tuple[Communities, ...]
    mining: MiningSpec
    batching: BatchSpec
    seed: int
    name: ClassVar[str] = "manifest"
    version: ClassVar[int] = 1000 * manifest.VERSION + batches.VERSION

    @property
    def dataset(self) -> str:  # noqa: D102
        return self.pipeline

    @property
    def refs(self) -> tuple[PairsRef, ...]:
        """The datasets, in the manifest's order."""
        return tuple(partition.ref for partition in self.partitions)

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return {
            "mining": self.mining.model_dump(),
            "batches": self.batching.model_dump(),
            "seed": self.seed,
        }

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {p.dataset: p.address.fingerprint for p in self.partitions}

    @property
    def title(self) -> str:  # noqa: D102
        return f"{self.mining.partitioner} {super().title}, seed {self.seed}"

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        tables = [ref.table(store) for ref in self.refs]
        parts = [communities.Partition.load(store.get(p.address)) for p in self.partitions]
        plan = batches.plan_batches(
            parts,
            group_of=[table.group_N for table in tables],
            spec=self.batching,
            rng=generator(self.seed, "batches"),
        )
        plan.check([len(table) for table in tables])
        manifest.Manifest(self._head(store, plan), plan).save(draft, tables)
        draft.counts |= {
            "batches": len(plan.row_SB),
            "rows": sum(len(table) for table in tables),
            "duplicates": plan.duplicates,
        }

    def _head(self, store: ArtifactStore, plan: batches.BatchPlan) -> dict[str, Any]:
        upstream = [
            store.get(address)
            for part in self.partitions
            for address in (
                part.ref.address,
                part.graph.ranks.vectors,
                part.graph.ranks.address,
                part.graph.address,
                part.address,
            )
        ]
        return {
            "schema": manifest.SCHEMA,
            "batch_size": self.batching.batch_size,
            "k": self.mining.k,
            "batches": len(plan.row_SB),
            "left_out": len(plan.left_out),
            "duplicates": plan.duplicates,
            "settings": dict(self.settings),
            "datasets": [
                {
                    "name": part.dataset,
                    "rows": part.ref.rows,
                    "digest": part.ref.digest,
                    "pairs": part.ref.address.fingerprint,
                    "communities": part.address.fingerprint,
                    "p": part.graph.cutoff,
                    "teacher": _teacher(store, part),
                    "quality": dict(store.get(part.address).counts),
                }
                for part in self.partitions
            ],
            "lineage": manifest.lineage_of(upstream),
            "libraries": _versions(),
        }


def _teacher(store: ArtifactStore, part: Communities) -> dict[str, Any]:
    """Say which weights embedded a dataset, and with which settings."""
    record = store.get(part.graph.ranks.vectors).record
    return {"weights": record["lineage"]["weights"], **record["settings"]}


def _versions() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
