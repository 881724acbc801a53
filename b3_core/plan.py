"""Everything a CONFIG will make, worked out before any of it is computed.

Given the datasets' pairs, every address downstream follows. A flow asks the store which of them
are there and runs the rest; nothing is started for work that is done.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from b3_core.config import BatchSpec, MiningSpec, PipelineSpec
from b3_core.embed import PairsRef, Vectors, check_rows
from b3_core.learn import Evaluation, Results, Student
from b3_core.mine import Communities, Graph, ManifestOf
from b3_core.ranking import Ranking, ranking_of
from b3_core.stage import Stage
from b3_core.store import ArtifactStore

_S = TypeVar("_S", bound=Stage)


@dataclass(frozen=True)
class Plan:
    """The stages of one CONFIG, each stage once.

    ``manifests``, ``students`` and ``evaluations`` are keyed by (arm, seed), arms first.
    """

    vectors: tuple[Vectors, ...]
    ranks: tuple[Ranking, ...]
    graphs: tuple[Graph, ...]
    communities: tuple[Communities, ...]
    manifests: dict[tuple[str, int], ManifestOf]
    students: dict[tuple[str, int], Student]
    evaluations: dict[tuple[str, int], Evaluation]
    results: Results

    @classmethod
    def of(cls, spec: PipelineSpec, refs: Sequence[PairsRef], store: ArtifactStore) -> Self:
        """Work the stages out from CONFIG and the datasets that were read.

        Raises
        ------
        InputError
            A dataset is too small for the batches asked for.
        """
        arms = {name: spec.arm(name) for name in spec.arm_names}
        minings = [mining for mining, _ in arms.values()]
        largest = max(v.k for mining, batches in arms.values() for v in mining.variants(batches))
        batch_size = max(batches.batch_size for _, batches in arms.values())
        vectors = []
        for ref in refs:
            check_rows(ref, k=largest, batch_size=batch_size)
            vectors.append(Vectors.of(store, ref, spec.teacher, spec.compute.shard_rows))
        ranks = {
            name: [ranking_of(made.ref, made.address, mining, among=minings) for made in vectors]
            for name, (mining, _) in arms.items()
        }
        keys: list[tuple[str, int]] = [(arm, seed) for arm in spec.arm_names for seed in spec.seeds]
        manifests = {
            (arm, seed): _manifest(spec.name, arms[arm], seed, ranks[arm]) for arm, seed in keys
        }
        students = {key: Student.of(made, spec.train) for key, made in manifests.items()}
        evaluations = {key: Evaluation(made, spec.evaluate) for key, made in students.items()}
        parts = [p for made in manifests.values() for variants in made.partitions for p in variants]
        return cls(
            vectors=tuple(vectors),
            ranks=tuple(_once(table for tables in ranks.values() for table in tables)),
            graphs=tuple(_once(part.graph for part in parts)),
            communities=tuple(_once(parts)),
            manifests=manifests,
            students=students,
            evaluations=evaluations,
            results=Results(tuple((arm, made) for (arm, _), made in evaluations.items())),
        )


def _manifest(
    pipeline: str, arm: tuple[MiningSpec, BatchSpec], seed: int, ranks: Sequence[Ranking]
) -> ManifestOf:
    mining, batches = arm
    partitions = tuple(
        tuple(
            Communities(table.ref, Graph(table.ref, table, variant), variant, seed)
            for variant in mining.variants(batches)
        )
        for table in ranks
    )
    return ManifestOf(pipeline, partitions, mining, batches, seed)


def _once(stages: Iterable[_S]) -> list[_S]:
    """Keep the first stage of each address: arms and seeds share what they can."""
    return list({stage.address: stage for stage in reversed(list(stages))}.values())[::-1]
