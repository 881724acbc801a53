"""A forecast put together: jobs by rates, a row a kind of stage, on a machine.

    jobs, rates, how many at once -> seconds of work, and on the clock
    widths, peaks                 -> memory, disk; what does not fit, and what to do

Seconds of work are the sum over artifacts, as records have them. On the clock, processes side by
side share them, and what starts Ray, its actors and a training job comes on top.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from b3_core.forecast.jobs import KINDS, Job, Rows
from b3_core.forecast.machine import Machine
from b3_core.forecast.measure import Spread
from b3_core.forecast.rates import Rate, rate_for
from b3_core.forecast.sizes import MB, Widths, disk_bytes, peak_mb

#: What the run's own process holds beside workers of Ray: Prefect with its server, libraries, and
#: what mining left (650 MB after 5,000 rows), and how much more than a probe of the same stage.
RUN_MB, MORE_MB = 650.0, 200.0

_REMEDIES = {
    "pairs": "split the dataset",
    "shards": "set compute.workers lower",
    "embeddings": "use a teacher of narrower vectors, or split the dataset",
    "ranks": "set mining.cell_rows",
    "graph": "set mining.cell_rows, or mining.m lower",
    "communities": "set mining.cell_rows, or mining.m lower",
    "manifest": "split the dataset",
    "student": "set compute.workers or batches.batch_size lower, or train.chunk_rows unless the "
    "student is static, whose batches are not cut",
    "evaluation": "train a narrower student, or split the dataset",
    "results": "",
}


@dataclass(frozen=True)
class Stage:
    """What one kind of stage will take."""

    stage: str
    artifacts: int
    done: int
    """Of the artifacts, how many the store has."""
    work_seconds: float
    seconds: float
    """On the clock."""
    memory_gb: float
    """Of all of its processes at once, and of the run's own."""
    disk_gb: float
    money: float | None
    basis: str
    problem: str | None
    """Why it does not fit, and what to do; None where it does."""


@dataclass(frozen=True)
class Forecast:
    """What a CONFIG will take."""

    stages: Sequence[Stage]
    start_seconds: float
    """Until Ray runs; part of the total."""
    machine: Machine
    assumptions: Sequence[str] = field(default_factory=tuple)
    refused: Sequence[str] = field(default_factory=tuple)
    """Why a run would not begin on that machine."""

    @property
    def seconds(self) -> float:
        """On the clock, altogether."""
        return self.start_seconds + sum(stage.seconds for stage in self.stages)

    @property
    def fits(self) -> bool:
        """Whether every stage does, and all of their files together."""
        return not self.problems

    @property
    def problems(self) -> list[str]:
        """What does not fit or would be refused, in words."""
        found = [*self.refused, *(stage.problem for stage in self.stages if stage.problem)]
        disk = sum(stage.disk_gb for stage in self.stages)
        if self.machine.disk_gb is not None and disk > self.machine.disk_gb:
            found.append(
                f"disk: {disk:.1f} GB of {self.machine.disk_gb:.1f} GB free: does not fit; "
                "set store.root to another disk or a bucket"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON."""
        return {
            "stages": [vars(stage) for stage in self.stages],
            "total": {
                "start_seconds": round(self.start_seconds, 1),
                "seconds": round(self.seconds, 1),
                "memory_gb": max((stage.memory_gb for stage in self.stages), default=0.0),
                "disk_gb": round(sum(stage.disk_gb for stage in self.stages), 3),
                "money": None
                if self.machine.money(0) is None
                else round(self.machine.money(self.seconds) or 0.0, 4),
            },
            "machine": {
                "cpus": self.machine.cpus,
                "gpus": self.machine.gpus,
                "memory_gb": round(self.machine.memory_gb, 1),
                "disk_gb": self.machine.disk_gb and round(self.machine.disk_gb, 1),
                "prices": dict(self.machine.prices),
            },
            "fits": self.fits,
            "problems": self.problems,
            "assumptions": list(self.assumptions),
        }


@dataclass(frozen=True)
class Basis:
    """What a forecast rests on."""

    rates: Mapping[str, Rate]
    kinds: Mapping[str, str]
    """Key -> kind of the rates."""
    totals: Mapping[str, Rows]
    widths: Widths
    spread: Spread
    machine: Machine
    starts: Mapping[str, float] = field(default_factory=dict)
    """Seconds that ``ray``, ``actors``, ``teacher`` and ``training`` take to start; 0 if absent."""

    def rate(self, job: Job) -> Rate | None:
        """Return how long such a job takes, if that is known."""
        return rate_for(job, self.rates, self.kinds)

    def rows(self, job: Job) -> float:
        """Return the training rows of a job's datasets."""
        if job.dataset in self.totals:
            return float(self.totals[job.dataset].train)
        return float(sum(rows.train for rows in self.totals.values()))


def predict(jobs: Sequence[Job], basis: Basis, assumptions: Sequence[str] = ()) -> Forecast:
    """Put a forecast together, of all jobs of a run, those done included."""
    by_kind = {kind: [job for job in jobs if job.kind == kind] for kind in KINDS}
    stages = [_stage(kind, found, basis) for kind, found in by_kind.items() if found]
    rayed = any(job.kind in _RAYED and not job.done for job in jobs)
    begins = basis.starts.get("ray", 0.0) if rayed else 0.0
    return Forecast(stages, begins, basis.machine, assumptions)


_RAYED = ("shards", "student", "evaluation")


def _stage(kind: str, jobs: Sequence[Job], basis: Basis) -> Stage:
    todo = [job for job in jobs if not job.done]
    at_once = _at_once(kind, basis.spread, len(todo))
    pieces = _pieces(kind, todo, basis.spread)
    work, peak, disk, bases = 0.0, 0.0, 0.0, []
    made = Counter[str]()
    for job in todo:
        rate = basis.rate(job)
        if rate is None:
            bases.append("not measured")
            continue
        # The first in each process pays for imports and loading.
        work += rate.seconds(job.work, cold=made[job.key] < at_once and kind != "shards")
        made[job.key] += 1
        peak = max(peak, peak_mb(job, rate, basis.widths, rows=basis.rows(job)))
        disk += disk_bytes(job, rate)
        bases.append(rate.source)
    begins = _begins(kind, basis.starts, pieces) if todo else 0.0
    clock = work / min(at_once, pieces) + begins
    # A single shard is embedded in the run's own process; cells are mined one a core.
    processes = min(at_once, math.ceil(pieces))
    if any(math.isfinite(job.held) for job in todo):
        processes = basis.machine.cpus
    memory = processes * peak + (RUN_MB if kind in _RAYED else MORE_MB) if peak else 0.0
    memory_gb = round(memory * MB / 1e9, 2)
    machine, problem = basis.machine, None
    if memory_gb > machine.memory_gb:
        problem = f"{kind}: {memory_gb:.1f} GB of {machine.memory_gb:.1f} GB: does not fit" + (
            f"; {_REMEDIES[kind]}" if _REMEDIES[kind] else ""
        )
    money = machine.money(clock)
    return Stage(
        kind,
        len(jobs),
        len(jobs) - len(todo),
        round(work, 2),
        round(clock, 2),
        memory_gb,
        round(disk / 1e9, 4),
        None if money is None else round(money, 4),
        "done" if not todo else ", ".join(dict.fromkeys(bases)),
        problem,
    )


def _at_once(kind: str, spread: Spread, todo: int) -> int:
    most = {
        "shards": spread.workers,
        "student": min(spread.jobs, todo),
        "evaluation": min(spread.evaluations, todo),
    }
    return max(1, most.get(kind, 1))


def _pieces(kind: str, todo: Sequence[Job], spread: Spread) -> float:
    """Return into how many pieces the work can be cut."""
    if kind != "shards":
        return float(max(1, len(todo)))
    return max(1.0, sum(job.work["rows"] for job in todo) / spread.shard_rows)


def _begins(kind: str, starts: Mapping[str, float], pieces: float) -> float:
    # A single shard is embedded in the run's own process.
    of_shards = ("actors", "teacher") if pieces > 1 else ("teacher",)
    names = {"shards": of_shards, "student": ("training",)}
    return sum(starts.get(name, 0.0) for name in names.get(kind, ()))
