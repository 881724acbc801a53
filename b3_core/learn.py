"""The stages after mining: a student a manifest, and its evaluation.

ManifestOf (arm, seed) -> Student -> Evaluation
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from b3_core import packaged, teacher
from b3_core.artifacts import Address, Draft
from b3_core.checkpoints import Checkpoints
from b3_core.config import ComputeSpec, EvalSpec, TrainSpec
from b3_core.dataset_stage import PairsRef
from b3_core.embed import load_student
from b3_core.evaluate import retrieval
from b3_core.manifest import Manifest
from b3_core.mine import ManifestOf
from b3_core.pairs import PairTable, side_inputs
from b3_core.progress import Progress, silent
from b3_core.stage import Stage, missing
from b3_core.store import ArtifactStore

_ADAPTERS = "adapters.safetensors"  # beside the model, in which they are merged


@dataclass(frozen=True)
class Student(Stage):
    """A model trained on one manifest; its seed sets weights, and the manifest's the rest."""

    manifest: ManifestOf
    train: TrainSpec
    initial: str
    before: "Student | None" = None
    """The student that this one goes on from, after a new mining."""
    span: tuple[float, float] = (0.0, 1.0)
    """Which part of the whole training this is."""
    compute: ComputeSpec = field(default_factory=ComputeSpec, compare=False)
    """How it is trained; no part of what it is."""
    teacher_vectors: tuple[Address, ...] = field(default=(), compare=False)
    """What the teacher made of each dataset: a leg's own may be those of the student so far."""
    stopping: Callable[[], bool] | None = field(default=None, compare=False)
    """Says in the process that trains it whether it is to end early."""
    name: ClassVar[str] = "student"
    version: ClassVar[int] = 1000 * packaged.VERSION + 6

    @classmethod
    def of(
        cls,
        manifest: ManifestOf,
        train: TrainSpec,
        *,
        before: "Student | None" = None,
        span: tuple[float, float] = (0.0, 1.0),
        compute: ComputeSpec | None = None,
        teacher_vectors: tuple[Address, ...] = (),
    ) -> Self:
        """Identify the weights that training starts from."""
        initial = "random"
        if before is not None:
            part = "student" if train.lora is None else "adapters"
            initial = f"{part}:{before.address.fingerprint}"
        elif train.student == "tokens":  # the packaged model's token vectors
            initial = "tokens:" + teacher.weights_of("minilm", None)
        elif train.student == "glyphs":  # the same, and a network from random weights
            initial = "glyphs:" + teacher.weights_of("minilm", None)
        elif train.student != "static":
            initial = teacher.weights_of(train.student, train.revision)
        return cls(
            manifest,
            train,
            initial,
            before,
            span,
            compute or ComputeSpec(),
            teacher_vectors=teacher_vectors,
        )

    @property
    def dataset(self) -> str:  # noqa: D102 - the base class says it
        return self.manifest.dataset

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return {
            **self.train.model_dump(exclude={"student", "revision", *self._as_before}),
            "seed": self.manifest.seed,
            **self._own_prompts,
            **({} if self.span == (0.0, 1.0) else {"span": list(self.span)}),
        }

    @property
    def _as_before(self) -> set[str]:
        """Settings that came later, where they are left alone: what was trained before stays."""
        defaults = TrainSpec.model_fields
        later = ("image_side", "frames")
        return {name for name in later if getattr(self.train, name) == defaults[name].default}

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {"manifest": self.manifest.address.fingerprint, "initial": self.initial}

    @property
    def one_thread(self) -> bool:
        """Say whether its training uses one core."""
        return self.train.student in packaged.SMALL

    @property
    def prompts(self) -> list[tuple[str, str]]:
        """What is put before each dataset's queries and positives."""
        prompted = [ref.spec.prompted(self.train) for ref in self.manifest.refs]
        return [(each.query_prompt, each.positive_prompt) for each in prompted]

    def _teacher_of(self, store: ArtifactStore) -> list[tuple[Any, Any]]:
        """Map the teacher's vectors of each dataset into memory, where they are asked for."""
        if self.train.positive_margin is None:
            return []
        found = [store.get(address) for address in self.teacher_vectors]
        return [
            (
                np.load(each.path("query.npy"), mmap_mode="r", allow_pickle=False),
                np.load(each.path("positive.npy"), mmap_mode="r", allow_pickle=False),
            )
            for each in found
        ]

    @property
    def _own_prompts(self) -> dict[str, Any]:
        same = (self.train.query_prompt, self.train.positive_prompt)
        return {"prompts": self.prompts} if set(self.prompts) != {same} else {}

    def checkpoints(self, store: ArtifactStore) -> Checkpoints:
        """Return where its training keeps what it has got so far."""
        stopping = self.stopping or (lambda: False)
        return Checkpoints(store, self.address, 60 * self.compute.checkpoint_minutes, stopping)

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        from b3_core.train import train_student  # noqa: PLC0415 - imports torch

        made = store.get(self.manifest.address)
        manifest = Manifest.load(made)
        tables = [ref.table(store) for ref in self.manifest.refs]
        manifest.check(tables, where=made.uri)
        with contextlib.ExitStack() as stack:
            initial = None
            done = {"steps": 0, "examples_seen": 0, "train_seconds": 0.0}
            if self.before is not None:
                trained = store.get(self.before.address)
                if self.train.lora is None:
                    initial = stack.enter_context(trained.folder("model"))
                else:
                    initial = trained.path(_ADAPTERS)
                done = {name: trained.counts[name] for name in done}
            goes_on = self.train.lora is not None and self.span[1] < 1
            result = train_student(
                tables,
                manifest.plan,
                self.train,
                seed=self.manifest.seed,
                output=draft.path("model"),
                negatives=manifest.negatives,
                prompts=self.prompts,
                teacher_of=self._teacher_of(store),
                shelf_of=[ref.shelf(store) for ref in self.manifest.refs],
                initial=initial,
                adapters=draft.path(_ADAPTERS) if goes_on else None,
                span=self.span,
                checkpoints=self.checkpoints(store),
                compute=self.compute,
                run=f"{self.dataset}-{self.address.fingerprint}",
                progress=progress,
            )
        draft.write_json("loss.json", [list(point) for point in result.loss])
        draft.counts |= {  # of all its training, the parts before this one included
            "steps": done["steps"] + result.steps,
            "examples_seen": done["examples_seen"] + result.examples_seen,
            "train_seconds": round(done["train_seconds"] + result.seconds, 2),
            "last_loss": result.loss[-1][1] if result.loss else None,
        }


def train_loop(
    config: Mapping[str, Any],
    *,
    rank: int,
    progress: Progress,
    report: Callable[[dict[str, Any]], None],
    stopping: Callable[[], bool],
) -> None:
    """Train several students in one worker group, skipping those that are done.

    Parameters
    ----------
    config
        ``root`` of the store and ``students`` to train.
    rank
        This worker's place in the group; worker 0 publishes.
    report
        Told the counts of every student that is finished, by all workers.
    stopping
        Says whether this worker is to end early.

    Raises
    ------
    StoppedError
        It was to, and did; the student it was at goes on from there.
    """
    store = ArtifactStore(config["root"])
    # Decided once, by worker 0 for all: one that skipped a student would leave the others waiting,
    # or train beside those of another. Another run may publish one of them meanwhile.
    students = _as_worker_0(config["students"], store)
    for place, found in enumerate(students):
        student = replace(found, stopping=stopping)
        step = _nested(progress, place, len(students)) if rank == 0 else silent
        if rank == 0:
            make = student.run if _is_alone() else student.make  # others count on worker 0's steps
            counts = dict(make(store, step).counts)
            student.checkpoints(store).clear()
        else:
            with tempfile.TemporaryDirectory() as folder:
                draft = Draft(Path(folder))
                student.build(store, draft, step)
                counts = draft.counts
        report(counts)


def _as_worker_0(students: Iterable[Student], store: ArtifactStore) -> list[Student]:
    """Return the students that the store lacked when worker 0 of the group looked, each once."""
    import torch  # noqa: PLC0415 - a worker has it already
    import torch.distributed as group  # noqa: PLC0415

    lacking = {student.address: student for student in missing(students, store)}
    if _is_alone():
        return list(lacking.values())
    once = {student.address: student for student in students}
    device = "cuda" if group.get_backend() == "nccl" else "cpu"
    flags = torch.tensor([each in lacking for each in once], dtype=torch.int32, device=device)
    group.broadcast(flags, src=0)
    return [each for each, flag in zip(once.values(), flags.tolist(), strict=True) if flag]


def _is_alone() -> bool:
    import torch.distributed as group  # noqa: PLC0415 - a worker has torch already

    ready = group.is_available() and group.is_initialized()
    return not ready or group.get_world_size() == 1


def _nested(progress: Progress, place: int, of: int) -> Progress:
    """Show step ``done`` of run ``place`` as one line over all runs."""
    return lambda done, total: progress(place * total + done, of * total)


@dataclass(frozen=True)
class Evaluation(Stage):
    """Held-out queries of every dataset against all of its positives, each once."""

    student: Student
    spec: EvalSpec
    name: ClassVar[str] = "evaluation"
    version: ClassVar[int] = retrieval.VERSION

    @property
    def dataset(self) -> str:  # noqa: D102
        return self.student.dataset

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return {**self.spec.settings, **in_bf16(self.student.train)}

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        heldout = {ref.spec.name: ref.heldout_digest for ref in self.student.manifest.refs}
        return {"student": self.student.address.fingerprint, **heldout}

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        manifest = self.student.manifest
        judge = Judge(self.student.address, manifest.address.fingerprint, self.student.train)
        judge.evaluate(manifest.refs, store, draft, progress=progress, reverse=self.spec.reverse)


def in_bf16(train: TrainSpec) -> dict[str, Any]:
    """Return the setting of evaluations whose students embed in bf16, as they were trained."""
    return {} if train.precision == "fp32" else {"precision": train.precision}


@dataclass(frozen=True)
class Judge:
    """Evaluates one trained student.

    Parameters
    ----------
    student
        Where it is.
    manifest
        Fingerprint of what it was trained on, for the report.
    train
        Its training; what counts here are the prompts and the length.
    prompts
        Dataset -> prompts of its queries and positives; those of ``train`` for one that is not
        there. None: as CONFIG has them for each dataset.
    """

    student: Address
    manifest: str
    train: TrainSpec
    prompts: Mapping[str, tuple[str, str]] | None = None

    def evaluate(
        self,
        refs: Sequence[PairsRef],
        store: ArtifactStore,
        draft: Draft,
        *,
        progress: Progress,
        reverse: bool = False,
    ) -> None:
        """Rank every held-out query's positive; write a report a dataset, and mean metrics."""
        encoder = load_student(store, self.student, self.train)
        reports = [
            report
            for ref in refs
            for report in self._reports(encoder, ref, store, progress, reverse=reverse)
        ]
        for report in reports:
            report.save(draft, report.task)
        names = [report.task for report in reports]
        metrics = {
            name: float(np.mean([report.metrics[name] for report in reports]))
            for name in reports[0].metrics
        }
        draft.counts |= {"tasks": names, "metrics": metrics}

    def _prompts(self, ref: PairsRef) -> dict[str, str]:
        own = ref.spec.prompted(self.train) if self.prompts is None else self.train
        pair = (own.query_prompt, own.positive_prompt)
        query, positive = (self.prompts or {}).get(ref.spec.name, pair)
        return {"query": query, "positive": positive}

    def _reports(
        self,
        encoder: teacher.Teacher,
        ref: PairsRef,
        store: ArtifactStore,
        progress: Progress,
        *,
        reverse: bool,
    ) -> list[retrieval.EvalReport]:
        """Rank what answers each held-out query, and, with ``reverse``, what each answers."""
        artifact = store.get(ref.address)
        heldout, train = (PairTable.load(artifact, name) for name in ("heldout", "train"))
        everything = pa.concat_tables([train.table, heldout.table])
        prompt_of = self._prompts(ref)
        shelf, seeing = ref.shelf(store), teacher.seeing(self.train)

        def vectors(rows: pa.Table, side: str) -> np.ndarray[Any, Any]:
            inputs = side_inputs(rows, side, shelf, seeing=seeing)
            return encoder.encode(inputs, prompt=prompt_of[side], progress=progress)

        fingerprints = {
            "student": self.student.fingerprint,
            "manifest": self.manifest,
            "pairs": ref.address.fingerprint,
        }
        reports = []
        for name, asked, side in (
            (ref.spec.name, "query", "positive"),
            (f"{ref.spec.name}-reverse", "positive", "query"),
        )[: 1 + reverse]:
            row_Q = retrieval.distinct(heldout.table, asked)
            corpus = everything.take(retrieval.distinct(everything, side))
            rank_Q = retrieval.rank_of_positive(
                vectors(heldout.table.take(row_Q), asked),
                vectors(corpus, side),
                group_Q=heldout.group_N[row_Q],
                group_C=corpus["group"].to_numpy(),
            )
            reports.append(
                retrieval.EvalReport(
                    name,
                    rank_Q,
                    row_Q,
                    # Queries of a class are no more alike than others: each is drawn by itself.
                    row_Q if ref.spec.task == "classification" else heldout.group_N[row_Q],
                    len(corpus),
                    ref.spec.name,
                    fingerprints,
                )
            )
        return reports


def evaluate_run(root: str, evaluation: Stage) -> None:
    """Evaluate one student: the body of a Ray task."""
    evaluation.run(ArtifactStore(root))
