"""Everything a CONFIG will make, worked out before any of it is computed.

Given the datasets' pairs, every address downstream follows. A flow asks the store which of them
are there and runs the rest; nothing is started for work that is done.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from b3_core.benchmarks import BenchmarkTable, table_of
from b3_core.celled import ranking_of
from b3_core.config import BatchSpec, ComputeSpec, MiningSpec, PipelineSpec, TrainSpec
from b3_core.dataset_stage import Pairs, PairsRef, check_rows
from b3_core.embed import Vectors
from b3_core.learn import Evaluation, Student
from b3_core.mine import Communities, Graph, ManifestOf
from b3_core.ranking import Ranking
from b3_core.results import Results
from b3_core.seams import communities_of
from b3_core.stage import Past, Stage
from b3_core.store import ArtifactStore

_S = TypeVar("_S", bound=Stage)

Key = tuple[str, int]
"""(arm, seed)."""


@dataclass(frozen=True)
class Leg:
    """What is mined and trained before the next refresh, each stage once.

    The first leg has every arm and seed, arms first; a later one those whose curriculum has a
    phase with ``refresh``, whose teachers are the students of the leg before.
    """

    vectors: tuple[Vectors, ...]
    ranks: tuple[Ranking, ...]
    graphs: tuple[Graph, ...]
    communities: tuple[Communities, ...]
    manifests: dict[Key, ManifestOf]
    students: dict[Key, Student]


@dataclass(frozen=True)
class Plan:
    """The stages of one CONFIG: legs in the order of their making, then what judges them."""

    legs: tuple[Leg, ...]
    evaluations: dict[Key, Evaluation]
    results: Results

    @classmethod
    def in_store(cls, spec: PipelineSpec, store: ArtifactStore) -> Self | None:
        """Plan CONFIG on its datasets as the store has them; None if one was never read."""
        refs = []
        for dataset in spec.datasets:
            artifact = store.find(Pairs.of(dataset, spec.evaluate).address)
            if artifact is None:
                return None
            refs.append(PairsRef.of(dataset, artifact))
        return cls.of(spec, refs, store)

    @classmethod
    def of(cls, spec: PipelineSpec, refs: Sequence[PairsRef], store: ArtifactStore) -> Self:
        """Work the stages out from CONFIG and the datasets that were read.

        Raises
        ------
        InputError
            A dataset is too small for the batches asked for.
        """
        arms = {name: spec.arm(name) for name in spec.arm_names}
        minings = [v for mining, batches in arms.values() for v in mining.variants(batches)]
        largest = max(mining.k for mining in minings)
        batch_size = max(batches.batch_size for _, batches in arms.values())
        vectors = []
        past = Past(store)
        for ref in refs:
            check_rows(ref, k=largest, batch_size=batch_size)
            made = Vectors.of(store, ref, spec.teacher, spec.compute.shard_rows)
            if spec.incremental:
                made = made.since(past, spec.compute.shard_rows)
            vectors.append(made)
        ways = {
            (arm, seed): _Way(spec.name, *arms[arm], seed, spec.train, spec.compute, past).go(
                vectors, minings
            )
            for arm in spec.arm_names
            for seed in spec.seeds
        }
        longest = max(len(way) for way in ways.values())
        final = {key: way[-1].student for key, way in ways.items()}
        evaluations = {key: Evaluation(made, spec.evaluate) for key, made in final.items()}
        return cls(
            legs=tuple(
                _leg({key: way[n] for key, way in ways.items() if n < len(way)})
                for n in range(longest)
            ),
            evaluations=evaluations,
            results=Results(tuple((arm, made) for (arm, _), made in evaluations.items())),
        )

    @property
    def manifests(self) -> list[ManifestOf]:
        """All of them, leg by leg."""
        return [made for leg in self.legs for made in leg.manifests.values()]

    def benchmarks(self, spec: PipelineSpec) -> BenchmarkTable | None:
        """Return what each arm's student of the first seed is put through; None if nothing.

        Raises
        ------
        InputError
            A benchmark's local copy is not there.
        """
        if not spec.evaluate.benchmarks:
            return None
        first = {arm: self.evaluations[arm, spec.seeds[0]].student for arm in spec.arm_names}
        return table_of(spec.name, first, spec.evaluate.benchmarks)

    @property
    def students(self) -> list[Student]:
        """All of them, leg by leg; the last of each arm and seed is evaluated."""
        return [made for leg in self.legs for made in leg.students.values()]


@dataclass(frozen=True)
class _Step:
    """One leg of one arm and seed."""

    vectors: Sequence[Vectors]
    manifest: ManifestOf
    student: Student


@dataclass(frozen=True)
class _Way:
    """From the teacher's vectors to the final student of one arm and seed."""

    pipeline: str
    mining: MiningSpec
    batches: BatchSpec
    seed: int
    train: TrainSpec
    compute: ComputeSpec
    past: Past

    def go(self, vectors: Sequence[Vectors], minings: Sequence[MiningSpec]) -> list[_Step]:
        """Plan leg by leg; ``minings`` are those of all arms, which share what they can."""
        steps: list[_Step] = []
        done = 0
        by_teacher = tuple(made.address for made in vectors)
        for leg, batches in enumerate(self.batches.legs):
            before = steps[-1].student if steps else None
            if before is not None:
                vectors = [made.by_student(before.address, self.train) for made in vectors]
            among = self.mining.variants(batches) if leg else minings
            ranks = [
                ranking_of(made.ref, made.address, self.mining, among=among).since(
                    self.past, made.earlier
                )
                for made in vectors
            ]
            manifest = self._manifest(ranks, batches, leg)
            span = done / self.batches.epochs, (done + batches.epochs) / self.batches.epochs
            student = Student.of(
                manifest,
                self.train,
                before=before,
                span=span,
                compute=self.compute,
                teacher_vectors=by_teacher,
            )
            steps.append(_Step(vectors, manifest, student))
            done += batches.epochs
        return steps

    def _manifest(self, ranks: Sequence[Ranking], batches: BatchSpec, leg: int) -> ManifestOf:
        partitions = tuple(
            tuple(
                communities_of(table, variant, self.seed).since(self.past)
                for variant in self.mining.variants(batches)
            )
            for table in ranks
        )
        return ManifestOf(self.pipeline, partitions, self.mining, batches, self.seed, leg)


def _leg(steps: dict[Key, _Step]) -> Leg:
    parts = [
        part
        for step in steps.values()
        for variants in step.manifest.partitions
        for part in variants
    ]
    return Leg(
        vectors=tuple(_once(made for step in steps.values() for made in step.vectors)),
        ranks=tuple(_once(part.graph.ranks for part in parts)),
        graphs=tuple(_once(part.graph for part in parts)),
        communities=tuple(_once(parts)),
        manifests={key: step.manifest for key, step in steps.items()},
        students={key: step.student for key, step in steps.items()},
    )


def _once(stages: Iterable[_S]) -> list[_S]:
    """Keep the first stage of each address: arms and seeds share what they can."""
    return list({stage.address: stage for stage in reversed(list(stages))}.values())[::-1]
