"""The stages that turn a ranking into a manifest.

Ranking -> Graph -> Communities (one an arm and seed) -> ManifestOf (all datasets)
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Self

from b3_core import (
    balance,
    batches,
    communities,
    graph,
    head,
    labels,
    manifest,
    mend,
    negatives,
    neighbours,
    pairs,
)
from b3_core.artifacts import Draft
from b3_core.config import BatchSpec, MiningSpec
from b3_core.dataset_stage import DatasetStage, Earlier, PairsRef, begun_with
from b3_core.progress import Progress
from b3_core.ranking import Ranking
from b3_core.stage import WHOLE_NODE, Past, Stage, generator
from b3_core.store import ArtifactStore
from b3_core.versions import installed

_LIBRARIES = (
    "b3-batches",
    "numpy",
    "scipy",
    "igraph",
    "leidenalg",
    "pymetis",
    "kaminpar",
    "numba",
    "faiss-cpu",
    "faiss-gpu",
)


@dataclass(frozen=True)
class Graph(DatasetStage):
    """The window graph, and beside it the graph of pairs that are too hard."""

    ranks: Ranking
    mining: MiningSpec
    name: ClassVar[str] = "graph"
    version: ClassVar[int] = 100 * graph.VERSION + labels.VERSION

    @property
    def cutoff(self) -> int:
        """The p of this dataset."""
        return self.mining.cutoff(self.ref.spec.task)

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return self.ranks.link_settings(self.mining)

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {"ranks": self.ranks.address.fingerprint}

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        attract, repel = self.ranks.link(store, self.mining)
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
    earlier: Earlier | None = None
    """Communities of other rows to begin with: they are mended where rows came or went."""
    name: ClassVar[str] = "communities"
    version: ClassVar[int] = 1000 * communities.VERSION + 10 * mend.VERSION + balance.VERSION
    cores: ClassVar[int] = WHOLE_NODE
    unheard: ClassVar[bool] = True

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return {
            **self.mining.model_dump(
                exclude={
                    "p",
                    "m",
                    "search",
                    "cell_rows",
                    "cell_lists",
                    "label_share",
                    "graph",
                    "weights",
                }
            ),
            "seed": self.seed,
        }

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {
            "pairs": self.ref.digest,
            "graph": self.graph.address.fingerprint,
            **begun_with(self.earlier),
        }

    def since(self, past: Past) -> Self:
        """Return the same with the communities of then to begin with, if the ranks have a then.

        Not where no swaps are asked for: what could be mended would stay as it is. Nor where rows
        were held out otherwise then, as by ``b3 tune``: it is not the data that changed.
        """
        ranks = self.graph.ranks.earlier
        if ranks is None or not self.mining.swap_rounds:
            return self
        if ranks.ref.kept_out(past.store) != self.ref.kept_out(past.store):
            return self
        then = {
            "pairs": ranks.ref.digest,
            "graph": self.graph.address_of({"ranks": ranks.address.fingerprint}).fingerprint,
        }
        found = past.last(self, then)
        return replace(self, earlier=Earlier(ranks.ref, found)) if found else self

    @property
    def title(self) -> str:  # noqa: D102
        return f"{self.mining.partitioner} {super().title}, seed {self.seed}"

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        edges = store.get(self.graph.address)
        attract = graph.CsrGraph.load(edges, "attract")
        repel = graph.CsrGraph.load(edges, "repel")
        mining = self.graph.ranks.partitioning(self.mining, attract)
        given: dict[str, Any] = {
            "attract": attract,
            "repel": repel,
            "group_N": self.ref.group_N(store),
            "spec": mining,
            "rng": generator(self.seed, "balance"),
            "progress": progress,
        }
        if self.earlier is None:
            found_N = communities.find_communities(
                attract, mining, rng=generator(self.seed, "communities"), repel=repel
            )
            partition = balance.balance(found_N, **given)
        else:
            then = communities.Partition.load(store.get(self.earlier.address))
            now = self.ref.table(store)
            same_N = pairs.rows_before(now, self.earlier.ref.table(store))
            before_N = pairs.edited_rows(same_N, len(then.label_N))
            mended = mend.mend(then.label_N, before_N, edited_N=before_N != same_N, **given)
            partition = mended.partition
            draft.counts["touched"] = mended.touched
        self.keep(partition, store, draft)

    def keep(self, partition: communities.Partition, store: ArtifactStore, draft: Draft) -> None:
        """Write communities, and what they are worth."""
        partition.save(draft)
        draft.counts |= self.graph.ranks.describe(store, partition, self.mining)
        draft.counts |= {"moved": partition.moved, "objective": partition.objective}


@dataclass(frozen=True)
class ManifestOf(Stage):
    """Batches of every epoch, from the communities of all datasets."""

    pipeline: str
    partitions: tuple[tuple[Communities, ...], ...]
    """For each dataset its communities, one for each variant of mining in the curriculum."""
    mining: MiningSpec
    batching: BatchSpec
    seed: int
    leg: int = 0
    """Of a curriculum that is mined anew on the way: which mining this is."""
    name: ClassVar[str] = "manifest"
    version: ClassVar[int] = 10_000 * manifest.VERSION + 100 * batches.VERSION + negatives.VERSION

    @property
    def dataset(self) -> str:  # noqa: D102
        return self.pipeline

    @property
    def refs(self) -> tuple[PairsRef, ...]:
        """The datasets, in the manifest's order."""
        return tuple(variants[0].ref for variants in self.partitions)

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        batches = self.batching.model_dump(
            mode="json", exclude={"curriculum": {"__all__": {"refresh"}}}
        )
        mining = self.mining.model_dump()
        if mining["cell_rows"] is None:  # what was mined before there were cells stays
            del mining["cell_rows"], mining["cell_lists"]
        return {
            "mining": mining,
            "batches": batches,
            "weights": [ref.spec.weight for ref in self.refs],
            # Batches name datasets by their place; of a single one nothing has to be said.
            **({"order": [ref.spec.name for ref in self.refs]} if len(self.refs) > 1 else {}),
            "seed": self.seed,
            **({"leg": self.leg} if self.leg else {}),
        }

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        places = {f"{ref.spec.name}/places": ref.places for ref in self.refs}
        return places | {
            f"{part.dataset}/{variant}": part.address.fingerprint
            for variants in self.partitions
            for variant, part in enumerate(variants)
        }

    @property
    def variant_of(self) -> list[int]:
        """Which of a dataset's communities each epoch uses."""
        return self.mining.variant_of_epoch(self.batching)

    @property
    def title(self) -> str:  # noqa: D102
        return f"{self.mining.partitioner} {super().title}, seed {self.seed}"

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        tables = [ref.table(store) for ref in self.refs]
        plan = batches.plan_batches(
            [
                [communities.Partition.load(store.get(part.address)) for part in variants]
                for variants in self.partitions
            ],
            group_of=[table.group_N for table in tables],
            spec=self.batching,
            rng=generator(self.seed, f"batches {self.leg}" if self.leg else "batches"),
            variant_of=self.variant_of,
            weight_of=[ref.spec.weight for ref in self.refs],
        )
        plan.check([len(table) for table in tables])
        drawn = self._negatives(store, plan, [table.group_N for table in tables])
        head = self._head(store, plan, shortage=drawn.shortage)
        manifest.Manifest(head, plan, drawn).save(draft, tables)
        draft.counts |= {
            "batches": len(plan.row_SB),
            "rows": sum(len(table) for table in tables),
            "duplicates": plan.duplicates,
            "negatives_short": drawn.shortage,
        }

    def _negatives(
        self, store: ArtifactStore, plan: batches.BatchPlan, group_of: list[Any]
    ) -> negatives.Negatives:
        if not self.batching.negatives:
            return negatives.Negatives.none(plan)
        graphs = [variants[0].graph for variants in self.partitions]
        return negatives.draw_negatives(
            plan,
            ranks=[
                None
                if each.ref.spec.task == "classification"
                else neighbours.RankTable.load(store.get(each.ranks.address))
                for each in graphs
            ],
            group_of=group_of,
            p_of=[each.cutoff for each in graphs],
            m=self.mining.m,
            h=self.batching.negatives,
            rng=generator(self.seed, "negatives"),
        )

    def _head(
        self, store: ArtifactStore, plan: batches.BatchPlan, *, shortage: int
    ) -> dict[str, Any]:
        upstream = [
            store.get(address)
            for variants in self.partitions
            for part in variants
            for address in (
                part.ref.address,
                part.graph.ranks.vectors,
                part.graph.ranks.address,
                part.graph.address,
                part.address,
            )
        ]
        return {
            "schema": head.SCHEMA,
            "version": self.version,
            "batch_size": self.batching.batch_size,
            "k": self.mining.k,
            "batches": len(plan.row_SB),
            "layout": asdict(manifest.Layout.of(self.batching.batch_size)),
            "left_out": len(plan.left_out),
            "duplicates": plan.duplicates,
            "negatives": self.batching.negatives,
            "negatives_short": shortage,
            "settings": dict(self.settings),
            "variant_of_epoch": self.variant_of,
            "datasets": [
                {
                    "name": ref.spec.name,
                    "rows": ref.rows,
                    "digest": ref.digest,
                    "places": ref.places,
                    "pairs": ref.address.fingerprint,
                    "communities": [part.address.fingerprint for part in variants],
                    "ranks": variants[0].graph.ranks.address.fingerprint,
                    "p": variants[0].graph.cutoff,
                    "m": self.mining.m,
                    "teacher": _teacher(store, variants[0]),
                    "quality": [store.get(part.address).figures for part in variants],
                    **_carried_over(variants),
                }
                for ref, variants in zip(self.refs, self.partitions, strict=True)
            ],
            "lineage": manifest.lineage_of(upstream),
            "libraries": installed(_LIBRARIES),
        }


def _carried_over(variants: tuple[Communities, ...]) -> dict[str, Any]:
    """Name the ranks and communities that this dataset's were made from, if any were."""
    ranks = variants[0].graph.ranks.earlier
    if ranks is None:
        return {}
    return {
        "earlier": {
            "pairs": ranks.ref.digest,
            "ranks": ranks.address.fingerprint,
            "communities": [
                part.earlier.address.fingerprint if part.earlier else None for part in variants
            ],
        }
    }


def _teacher(store: ArtifactStore, part: Communities) -> dict[str, Any]:
    """Say which weights embedded a dataset, and with which settings."""
    record = store.get(part.graph.ranks.vectors).record
    return {"weights": record["lineage"]["weights"], **record["settings"]}
