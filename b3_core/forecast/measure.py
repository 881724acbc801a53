"""Probes, run one kind after another: each as many processes at once as a run has of its kind.

sample -> embed x workers -> vectors -> mine -> train x jobs -> evaluate; start beside nothing
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from b3_core import packaged
from b3_core.config import Phase, PipelineSpec
from b3_core.errors import B3Error
from b3_core.forecast.jobs import Job, Rows
from b3_core.forecast.rates import Timing
from b3_core.forecast.sample import Sample
from b3_core.machine import cores
from b3_core.progress import Progress, silent
from b3_core.ray_session import TASKS_AT_ONCE, RaySession, trainings_at_once
from b3_core.teacher import check_at_hand

#: Probes, and the kinds of stages whose rates each finds.
PROBES = {
    "embed": ("shards",),
    "mine": ("pairs", "embeddings", "ranks", "graph", "communities", "manifest"),
    "train": ("student",),
    "evaluate": ("evaluation",),
    "start": (),
}
_LEAST_ROWS = 64  # of a worker's part of a sample
_TEXT_ROWS = 4096  # embedded by a student at most, to time it


@dataclass(frozen=True)
class Spread:
    """How many processes of each kind a run has at once, on this machine."""

    workers: int
    jobs: int
    """Trainings side by side."""
    evaluations: int
    evaluation_threads: int = 2
    shard_rows: int = 4096
    gpus: int = 0
    """Of the machine; 0 if workers have no use for them."""

    @classmethod
    def of(cls, spec: PipelineSpec, *, cpus: int, students: int, gpus: int = 0) -> "Spread":
        """Work it out as :mod:`b3_core.ray_session` does."""
        compute = spec.compute
        workers = compute.workers or cpus
        fit = RaySession(compute).fitting(math.inf if compute.gpus_per_worker else cpus, gpus)
        if compute.gpus_per_worker:
            workers = max(1, min(compute.workers or fit, fit))  # more would have no place
        workers = min(workers, TASKS_AT_ONCE)
        small = spec.train.student in packaged.SMALL  # trained and judged on the CPU, a core each
        places = cpus if small else fit
        jobs = trainings_at_once(compute, students, slim=small, places=places)
        if small:
            evaluations = compute.workers or cpus
        elif compute.gpus_per_worker:
            evaluations = workers
        else:  # two cores each, of those that Ray is told of
            evaluations = max(1, (max(cpus, workers, compute.train_workers) + 1) // 2)
        return cls(
            workers,
            jobs,
            evaluations=min(evaluations, TASKS_AT_ONCE),
            # On warm workers, of a core, but for models on the CPU that are not small.
            evaluation_threads=1 if small or compute.gpus_per_worker else 2,
            shard_rows=compute.shard_rows,
            gpus=gpus if compute.gpus_per_worker else 0,
        )


@dataclass
class Measured:
    """What probes found."""

    timings: list[Timing] = field(default_factory=list)
    starts: dict[str, float] = field(default_factory=dict)
    """Seconds that Ray, its actors with their teacher, and a training job take to start."""
    embedded: int = 0
    """Rows of the sample that the teacher embedded; more were copied from those, with noise."""
    dim: int = 0


@dataclass(frozen=True)
class Prober:
    """Runs probes on a sample.

    Parameters
    ----------
    folder
        Scratch, for stores of the sample.
    totals
        Rows of each dataset of the data.
    seconds
        Of work that each probe times, about; starting processes takes as long again.
    """

    sample: Sample
    folder: Path
    totals: Mapping[str, Rows]
    spread: Spread
    seconds: float = 8.0

    def measure(self, jobs: Sequence[Job], progress: Progress = silent) -> Measured:
        """Run the probes that these jobs need.

        Raises
        ------
        InputError
            A model of the hub is not here, and the hub may not be asked.
        B3Error
            A probe failed; what it said last is told.
        """
        kinds = {job.kind for job in jobs}
        needed = [name for name, finds in PROBES.items() if kinds & set(finds)]
        if "evaluate" in needed and "train" not in needed:
            needed.insert(needed.index("evaluate"), "train")
        warm = "evaluate" in needed and self._warm
        if warm:
            needed.remove("evaluate")
        if "mine" in needed and "embed" not in needed:
            needed.insert(0, "embed")
        if kinds & {"shards", "student", "evaluation"}:
            needed.append("start")
        spec = self.sample.spec
        if "embed" in needed:
            check_at_hand(spec.teacher.model, spec.teacher.revision)
        if "train" in needed:
            check_at_hand(spec.train.student, spec.train.revision)
        found = Measured()
        trained: list[dict[str, Any]] = []
        for done, name in enumerate(dict.fromkeys(needed)):
            progress(done, len(needed))
            if name == "embed":
                self._embed(found)
            elif name == "mine":
                self._mine(found)
            elif name == "train":
                trained = self._train(found, jobs, judging=warm)
            elif name == "evaluate":
                self._evaluate(found, trained)
            else:
                started = self._run("start", [self._request(jobs=self.spread.jobs)])[0]
                found.starts |= started
        progress(len(needed), len(needed))
        return found

    @property
    def _shards(self) -> int:
        return -(-sum(rows.train for rows in self.totals.values()) // self.spread.shard_rows)

    @property
    def _embedding(self) -> int:
        """Processes that embed at once: no more than there are shards for."""
        return max(1, min(self.spread.workers, cores(), self._shards))

    @property
    def _warm(self) -> bool:
        """Whether those that train evaluate too, as small students are in a run.

        Only where data is so small that to start others would take longer than what they do.
        """
        spec = self.sample.spec
        small = spec.train.student in packaged.SMALL and spec.compute.train_workers == 1
        return small and self._shards <= 1

    def _embed(self, found: Measured) -> None:
        workers = self._embedding
        requests = []
        for worker in range(workers):
            vectors = self.folder / f"vectors-{worker}"
            vectors.mkdir(parents=True)
            spec = self._own_part(worker, workers)
            requests.append(
                {"spec": _dumped(spec), "vectors": str(vectors), "seconds": self.seconds}
            )
        answers = self._run("embed", requests, threads=1)
        found.timings += _timings(answers)
        found.starts["teacher"] = max(answer["load"] for answer in answers)
        for dataset in self.sample.spec.datasets:
            for side in ("query", "positive"):
                name = f"{dataset.name}-{side}.npy"
                parts = [np.load(self.folder / f"vectors-{n}" / name) for n in range(workers)]
                joined = np.concatenate(parts)
                np.save(self.folder / "vectors-0" / name, joined)
                found.dim = joined.shape[1]
            found.embedded += len(joined)

    def _own_part(self, worker: int, workers: int) -> PipelineSpec:
        """Give each worker rows of its own."""
        import pyarrow.parquet as pq  # noqa: PLC0415

        spec = self.sample.cut(self.folder / f"embed-{worker}", 1 << 40)
        for dataset in spec.datasets:
            table = pq.read_table(dataset.uri)
            size = -(-len(table) // workers)
            least = min(len(table), max(size, _LEAST_ROWS))
            pq.write_table(table.slice(min(worker * size, len(table) - least), least), dataset.uri)
        return _smallest(spec)

    def _mine(self, found: Measured) -> None:
        rows = max(self.sample.rows.values())  # smaller datasets have what they have
        batch = max(batches.batch_size for _, batches in _arms(self.sample.spec))
        least = min(rows, 2 * batch)
        sizes = sorted({max(least, rows // 4), max(least, rows // 2), rows})
        for attempt in range(2):  # what compiles is not timed: it finds everything on disk then
            request = self._request(
                sizes=sizes,
                folder=str(self.folder / f"mine-{attempt}"),
                vectors=str(self.folder / "vectors-0"),
                rows={each: count.train for each, count in self.totals.items()},
                compiles=bool(attempt),
            )
            (answer,) = self._run("mine", [request])
            if not answer["compiled"]:
                break
        found.timings += _timings([answer])

    def _train(
        self, found: Measured, jobs: Sequence[Job], *, judging: bool
    ) -> list[dict[str, Any]]:
        """Train as many as a run has at once; return the CONFIG of each.

        ``judging``: evaluate them in the same processes.
        """
        steps = max((job.work["steps"] for job in jobs if job.kind == "student"), default=64)
        spec = self.sample.spec
        held = 0.0 if all(each.eval_uri for each in spec.datasets) else spec.evaluate.holdout
        requests = [
            self._request(
                folder=str(self.folder / f"train-{job}"),
                batch_size=max(batches.batch_size for _, batches in _arms(spec)),
                steps=steps,
                epochs=max(batches.epochs for _, batches in _arms(spec)),
                holdout=held,
                seconds=self.seconds,
                evaluate=self._evaluation(job) if judging else None,
            )
            for job in range(min(self.spread.jobs, cores()))
        ]
        answers = self._run("train", requests, threads=1)
        found.timings += _timings(answers)
        return [answer["trained"] for answer in answers]

    def _evaluate(self, found: Measured, trained: Sequence[dict[str, Any]]) -> None:
        requests = [
            self._evaluation(place) | {"trained": spec}
            for place, spec in enumerate(trained[: self.spread.evaluations])
        ]
        threads = min(self.spread.evaluation_threads, cores())
        found.timings += _timings(self._run("evaluate", requests, threads=threads))

    def _evaluation(self, place: int) -> dict[str, Any]:
        return self._request(
            folder=str(self.folder / f"evaluation-{place}"),
            seconds=self.seconds,
            texts=_TEXT_ROWS,
            queries=max(rows.heldout for rows in self.totals.values()),
            entries=max(rows.heldout + rows.train for rows in self.totals.values()),
        )

    def _request(self, **more: Any) -> dict[str, Any]:
        common = {
            "spec": _dumped(self.sample.spec),
            "sampled": dict(self.sample.rows),
            "folder": str(self.folder),
        }
        return {**common, **more}

    def _run(
        self, kind: str, requests: Sequence[Mapping[str, Any]], *, threads: int | None = None
    ) -> list[dict[str, Any]]:
        """Run a probe for each request, all at once."""
        with ThreadPoolExecutor(len(requests)) as pool:
            running = [
                pool.submit(
                    self._run_one,
                    f"{kind}-{number}",
                    request,
                    self._environment(kind, number, threads),
                )
                for number, request in enumerate(requests)
            ]
        return [each.result() for each in running]

    def _environment(self, kind: str, number: int, threads: int | None) -> dict[str, str]:
        """Return what Ray would give the process that this probe stands for."""
        environment = dict(os.environ)
        if threads is None:  # it stands for the run's own process
            return environment
        environment["OMP_NUM_THREADS"] = str(threads)
        spec = self.sample.spec
        on_cpu = kind != "embed" and spec.train.student in packaged.SMALL
        if on_cpu or not spec.compute.gpus_per_worker:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        elif self.spread.gpus > 1:
            seen = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(
                map(str, range(self.spread.gpus))
            )
            environment["CUDA_VISIBLE_DEVICES"] = seen.split(",")[number % self.spread.gpus]
        return environment

    def _run_one(
        self, name: str, request: Mapping[str, Any], environment: Mapping[str, str]
    ) -> dict[str, Any]:
        kind = name.partition("-")[0]
        asked, answered = (self.folder / f"{name}-{way}.json" for way in ("in", "out"))
        asked.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", "b3_core.forecast.probe", kind, str(asked), str(answered)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip() or "nothing was said").splitlines()[-1]
            raise B3Error(
                f"the probe '{kind}' failed: {said}",
                remedy="try the CONFIG on a few rows with b3 run, or look with -v",
            )
        answer: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
        return answer


def _timings(answers: Sequence[Mapping[str, Any]]) -> list[Timing]:
    return [Timing(**each) for answer in answers for each in answer["timings"]]


def _dumped(spec: PipelineSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json")


def _arms(spec: PipelineSpec) -> list[Any]:
    return [spec.arm(name) for name in spec.arm_names]


def _smallest(spec: PipelineSpec) -> PipelineSpec:
    """Let a part of a sample be planned: with batches that a few rows fill."""
    return spec.model_copy(
        update={
            "arms": ("random",),
            "promote": None,
            "mining": spec.mining.model_copy(update={"k": 2}),
            "batches": spec.batches.model_copy(update={"batch_size": 2, "curriculum": (Phase(),)}),
        }
    )
