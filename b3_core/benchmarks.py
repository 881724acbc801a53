"""The benchmarks of CONFIG: what is run of them, on which student, and the one report.

    BenchmarkSpec, student -> BenchmarkPart, one a task of MMEB, else one a set: scores
    parts of all arms -> BenchmarkTable: means, report beside published rows, result files

A part that fails is not kept, and costs no other: the next run does what is missing. Where the
local copies lie is no part of what a result is; what their annotations hold is.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from b3_core import teacher
from b3_core.artifacts import Address, Artifact, Draft, sha256_file
from b3_core.config import BenchmarkSpec, TrainSpec
from b3_core.embed import load_student
from b3_core.errors import B3Error, InputError
from b3_core.evaluate import benchmark, benchmark_report, local, mmeb
from b3_core.inputs import ModelInput, Seeing, shown
from b3_core.kept import KeptVectors
from b3_core.learn import Student, in_bf16
from b3_core.media import Item, MediaError, MediaRoot, look_at
from b3_core.progress import Progress, silent
from b3_core.stage import Stage
from b3_core.store import ArtifactStore

_ANNOTATIONS = {".json", ".jsonl", ".parquet", ".csv", ".txt"}
_LOOKERS = 2


@dataclass(frozen=True)
class BenchmarkPart(Stage):
    """One student on some tasks of a benchmark that are embedded together."""

    student: Student
    spec: BenchmarkSpec
    annotations: str
    media: str = ""
    """Which images or videos there are; "" where it takes all of them or fails."""
    name: ClassVar[str] = "benchmark"
    version: ClassVar[int] = benchmark.VERSION

    @property
    def dataset(self) -> str:  # noqa: D102 - the base class says it
        return self.student.dataset

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return {
            **self.spec.model_dump(exclude={"folder", "media"}),
            **in_bf16(self.student.train),
        }

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        media = {"media": self.media} if self.media else {}
        return {
            "student": self.student.address.fingerprint,
            "annotations": self.annotations,
            **media,
        }

    @property
    def called(self) -> str:
        """What it is called in messages."""
        return " ".join([self.spec.name, *self.spec.tasks])

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:
        """Run it and keep its scores.

        Raises
        ------
        B3Error
            A task failed.
        """
        most_bytes = int(self.student.compute.keep_vectors_gb * 1e9)
        result = evaluate_student(
            self.student.address,
            self.spec,
            self.student.train,
            store,
            most_bytes=most_bytes,
            progress=progress,
        )
        for score in result.scores:
            if score.error:
                raise B3Error(f"{score.task}: {score.error}")
        draft.write_json("scores.json", [asdict(score) for score in result.scores])


def parts_of(student: Student, spec: BenchmarkSpec) -> list[BenchmarkPart]:
    """Return what is run of a benchmark: each task of MMEB that is there, else all at once.

    Raises
    ------
    InputError
        There is no such folder, benchmark or task.
    """
    known = asked(spec)
    folder = Path(spec.folder)
    # What is left out for want of media is in once they come.
    names = local.media_names(spec.media or spec.folder) if spec.drop_missing else []
    media = hashlib.sha256("\n".join(names).encode()).hexdigest()[:20] if names else ""
    if spec.name != "mmeb":
        files = [file for file in folder.rglob("*") if file.suffix in _ANNOTATIONS]
        return [BenchmarkPart(student, spec, _digest(folder, files), media)]
    there = {
        task: files
        for task in known.tasks or benchmark.tasks_of(spec.name)
        if (files := mmeb.task_files(folder, task))
    }
    if not there:
        raise InputError(
            f"{spec.folder} has no task of MMEB that was asked for",
            expected="folders called as MMEB-eval's tasks, such as OK-VQA",
            remedy="set folder of that benchmark",
        )
    return [
        BenchmarkPart(
            student, spec.model_copy(update={"tasks": (task,)}), _digest(folder, files), media
        )
        for task, files in there.items()
    ]


def table_of(
    pipeline: str, students: Mapping[str, Student], specs: Sequence[BenchmarkSpec]
) -> "BenchmarkTable":
    """Return the report on the students of arms, with all of its parts.

    Raises
    ------
    InputError
        There is no such folder, benchmark or task.
    """
    parts = [
        (arm, part)
        for arm, student in students.items()
        for spec in specs
        for part in parts_of(student, spec)
    ]
    return BenchmarkTable(pipeline, tuple(students), tuple(specs), tuple(parts))


@dataclass(frozen=True)
class BenchmarkTable(Stage):
    """All that arms scored on all benchmarks, as one report.

    Each arm's student of the first seed is put through them.
    """

    pipeline: str
    arms: tuple[str, ...]
    specs: tuple[BenchmarkSpec, ...]
    parts: tuple[tuple[str, BenchmarkPart], ...]
    """(arm, part), of those that did not fail."""
    failed: tuple[tuple[str, BenchmarkPart, str], ...] = ()
    """(arm, part, why)."""
    name: ClassVar[str] = "benchmarks"
    version: ClassVar[int] = 2

    @property
    def dataset(self) -> str:  # noqa: D102
        return self.parts[0][1].dataset if self.parts else self.pipeline

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        specs = [spec.model_dump(exclude={"folder", "media"}) for spec in self.specs]
        failed = [[arm, part.called, why] for arm, part, why in self.failed]
        return {"arms": list(self.arms), "benchmarks": specs, "failed": failed}

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {f"{arm}/{part.called}": part.address.fingerprint for arm, part in self.parts}

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        found = {arm: self._results(arm, store) for arm in self.arms}
        rows = {arm: benchmark_report.as_json(results) for arm, results in found.items()}
        draft.write_json("benchmarks.json", rows)
        texts = [
            f"## {arm}\n\n{benchmark_report.markdown(results, model=arm)}"
            for arm, results in found.items()
        ]
        whole = ["# Benchmarks\n", benchmark_report.side_by_side(found), *texts]
        draft.path("report.md").write_text("\n".join(whole), encoding="utf-8")
        for arm, results in found.items():
            card = benchmark_report.model_index(results, model=arm)
            draft.path(f"{arm}/model-index.yaml").write_text(card, encoding="utf-8")
            for result in results:
                for name, content in benchmark_report.mteb_results(result).items():
                    draft.write_json(f"{arm}/mteb/{name}", content)

    def without(self, failed: Sequence[tuple[str, BenchmarkPart, str]]) -> Self:
        """Return the report that says why some parts are not in it."""
        gone = [(arm, part.address) for arm, part, _ in failed]
        kept = tuple((arm, part) for arm, part in self.parts if (arm, part.address) not in gone)
        return replace(self, parts=kept, failed=tuple(failed))

    def _results(self, arm: str, store: ArtifactStore) -> list[benchmark.BenchmarkResult]:
        results = []
        for spec in self.specs:
            scores: dict[str, benchmark.Score] = {}
            for of, part in self.parts:
                if of == arm and part.spec.name == spec.name:
                    kept = json.loads(store.get(part.address).path("scores.json").read_bytes())
                    scores |= {each["task"]: benchmark.Score(**each) for each in kept}
            for of, part, why in self.failed:
                if of == arm and part.spec.name == spec.name:
                    tasks = part.spec.tasks or benchmark.tasks_of(spec.name)
                    scores |= {task: benchmark.Score(task, error=why) for task in tasks}
            wanted = spec.tasks or benchmark.tasks_of(spec.name)
            results.append(
                benchmark.of_scores(
                    spec.name,
                    [scores.get(task, benchmark.Score(task, missing=True)) for task in wanted],
                )
            )
        return results


def read_table(artifact: Artifact) -> dict[str, Any]:
    """Return ``benchmarks``: arm -> results, and where their report is."""
    found = json.loads(artifact.path("benchmarks.json").read_bytes())
    report = f"{artifact.uri}/{artifact.files['report.md'].path}"
    return {"benchmarks": found, "benchmarks_report": report}


def evaluate_student(
    student: Address,
    spec: BenchmarkSpec,
    train: TrainSpec,
    store: ArtifactStore,
    *,
    most_bytes: int = 0,
    progress: Progress = silent,
) -> benchmark.BenchmarkResult:
    """Put a trained student through a benchmark, with the prompts that CONFIG has for it.

    Parameters
    ----------
    most_bytes
        Space in the store for its vectors, from one run to the next.
    """
    encoder = BenchmarkEncoder(load_student(store, student, train), teacher.seeing(train))
    memory = None
    if most_bytes:
        memory = KeptVectors(store, student, _decides(train), most_bytes)
    return benchmark.run_benchmark(asked(spec), encoder, memory=memory, progress=progress)


def _decides(train: TrainSpec) -> dict[str, Any]:
    """Return what, beside its weights and what it is shown, decides a student's vectors."""
    seen = train.model_dump(include={"max_length", "image_side", "frames"})
    versions = {"teacher": teacher.VERSION, "benchmark": benchmark.VERSION}
    return {**seen, **in_bf16(train), **versions}


def asked(spec: BenchmarkSpec) -> benchmark.Benchmark:
    """Return what :func:`b3_core.evaluate.benchmark.run_benchmark` takes.

    Raises
    ------
    InputError
        There is no such benchmark, task or folder.
    """
    if not Path(spec.folder).is_dir():
        raise InputError(
            f"benchmark {spec.name} has no folder {spec.folder}",
            expected="a local copy of its annotations",
            remedy="set folder of that benchmark",
        )
    return benchmark.Benchmark(
        spec.name,
        spec.folder,
        media=spec.media or "",
        tasks=spec.tasks,
        positive_prompts=spec.positive_prompts,
        prompts=benchmark.Prompts(
            spec.text_query_prompt,
            spec.text_target_prompt,
            spec.media_query_prompt,
            spec.media_target_prompt,
        ),
        drop_missing=spec.drop_missing,
    )


class BenchmarkEncoder:
    """A teacher or student as benchmarks ask for it: media are looked at apart, then embedded."""

    def __init__(self, model: teacher.Teacher, seeing: Seeing) -> None:
        self._model, self._seeing = model, seeing

    def encode_items(
        self,
        items: Sequence[Item],
        root: MediaRoot | None,
        *,
        prompt: str = "",
        progress: Progress = silent,
    ) -> npt.NDArray[np.float32]:
        """Embed items, as :class:`b3_core.evaluate.encoder.Encoder` has it.

        Raises
        ------
        MediaError
            A medium is missing or bad; it is named.
        """
        if root is not None:
            self._look(items, root)
        inputs = _Items(items, root, self._seeing)
        return self._model.encode(inputs, prompt=prompt, progress=progress)

    def _look(self, items: Sequence[Item], root: MediaRoot) -> None:
        """Decode every medium once where a bad one does no harm."""
        media = list(dict.fromkeys((item.kind, item.file) for item in items if item.kind))
        looks = look_at(
            root.root, media, limits=root.limits, workers=_LOOKERS, frames=self._seeing.frames
        )
        for (kind, file), look in zip(media, looks, strict=True):
            if look.fault:
                raise MediaError(f"{kind} {file} {look.fault}")


@dataclass(frozen=True, eq=False)
class _Items(Sequence[ModelInput]):
    """Items that are decoded when they are asked for."""

    items: Sequence[Item]
    root: MediaRoot | None
    seeing: Seeing

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._input(item) for item in self.items[index]]
        return self._input(self.items[index])

    def _input(self, item: Item) -> ModelInput:
        if not item.kind:
            return item.text
        assert self.root is not None
        content = self.root.read(item.file, kind=item.kind)
        picture = shown(item.kind, content, self.seeing, limits=self.root.limits)
        return {"image": picture, **({"text": item.text} if item.text else {})}


def _digest(folder: Path, files: Sequence[Path]) -> str:
    """Hash what annotations say: their names and bytes."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(folder)} {sha256_file(file)}\n".encode())
    return digest.hexdigest()[:20]
