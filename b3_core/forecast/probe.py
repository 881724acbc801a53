"""The stages of a CONFIG on a sample of its rows, timed: a process of its own, as in a run.

python -m b3_core.forecast.probe KIND REQUEST      (prints JSON)

start      -> Ray: to start it, its actors, its training job
embed      -> shards, by a warm teacher
mine       -> ranks, graphs, communities, manifests, on vectors of that teacher
train      -> a student, the first one of a process and further ones
evaluate   -> that student's evaluation

"""

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from b3_core import packaged
from b3_core.config import PipelineSpec
from b3_core.embed import Shard, Vectors
from b3_core.forecast.jobs import Job, key_of
from b3_core.forecast.probe_mining import mine
from b3_core.forecast.probe_training import evaluate, train
from b3_core.forecast.probing import read, timing_of
from b3_core.forecast.rates import Timing
from b3_core.machine import cores
from b3_core.store import ArtifactStore
from b3_core.teacher import Embeddings

_FIRST_ROWS = 256  # one block of the teacher


def embed(request: Mapping[str, Any]) -> dict[str, Any]:
    """Embed shards of every dataset for some seconds; keep the vectors as files."""
    from b3_core import teacher  # noqa: PLC0415

    spec = PipelineSpec.model_validate(request["spec"])
    store, plan, _, _ = read(spec)
    began = time.perf_counter()
    timings, first = [], True
    with teacher.one_thread():
        encoder = teacher.Teacher(plan.legs[0].vectors[0].shards[0].loaded)
        loaded = time.perf_counter() - began
        share = request["seconds"] / len(plan.legs[0].vectors)
        for vectors in plan.legs[0].vectors:
            parts, took = [], []
            for shard, seconds in _embedded(vectors, encoder, store, share, cold=first):
                took.append(seconds)
                parts.append(Embeddings.load(store.get(shard.address)))
                first = False
            timings += _summed(took)
            joined = Embeddings.concatenate(parts)
            for side in ("query", "positive"):
                np.save(
                    Path(request["vectors"], f"{vectors.dataset}-{side}.npy"),
                    getattr(joined, f"{side}_ND"),
                )
    return {"timings": timings, "load": loaded}


def _embedded(
    vectors: Vectors, encoder: Any, store: ArtifactStore, budget: float, *, cold: bool
) -> Iterable[tuple[Shard, Timing]]:
    """Embed a first block, then as many rows at a time as the budget allows."""
    ref, start, size = vectors.ref, 0, _FIRST_ROWS
    spent = 0.0
    like = vectors.shards[0]
    table = like.rows(store)
    while start < ref.rows and (spent < budget or not start):
        stop = min(start + size, ref.rows)
        shard = replace(like, start=start, stop=stop, content=f"probe {start} {stop}")
        with store.draft(shard.address, lineage=shard.inputs, settings=shard.settings) as draft:
            shard.embed(encoder, table, draft, shelf=ref.shelf(store))
        job = Job("shards", key_of(shard), ref.spec.name, {"rows": float(stop - start)}, False)
        timing = timing_of(job, shard, store, cold=cold and not start)
        spent += timing.seconds
        yield shard, timing
        rate = (stop - start) / max(timing.seconds, 1e-3)
        size = int(np.clip(rate * (budget - spent) / 2, _FIRST_ROWS, 4096)) // _FIRST_ROWS
        size, start = size * _FIRST_ROWS, stop


def _summed(took: Sequence[Timing]) -> list[Timing]:
    """Put the warm shards together: texts differ more than what a shard takes beside them."""
    warm = [each for each in took if not each.cold]
    if not warm:
        return list(took)
    whole = replace(
        warm[0],
        work={"rows": sum(each.work["rows"] for each in warm)},
        seconds=sum(each.seconds for each in warm),
        peak_mb=max(each.peak_mb for each in warm),
        bytes=sum(each.bytes for each in warm),
    )
    return [*(each for each in took if each.cold), whole]


class Idle:
    """An actor that does nothing."""

    def run(self) -> None:
        """Do nothing."""


def _nothing() -> None:
    pass


def _no_training(config: Any, *, rank: int, progress: Any, report: Any, stopping: Any) -> None:
    import torch  # noqa: F401, PLC0415 - as a worker does before its first student


def start(request: Mapping[str, Any]) -> dict[str, Any]:
    """Start Ray, a pool of actors and a training job, none of which does anything."""
    from b3_core.ray_session import session  # noqa: PLC0415

    spec = PipelineSpec.model_validate(request["spec"])
    # Of this machine: a GPU that is not here, or workers of another one, would be waited for.
    most = cores()
    here = spec.compute.model_copy(
        update={
            "gpus_per_worker": 0.0,
            "workers": min(spec.compute.workers or most, most),
            "train_workers": min(spec.compute.train_workers, most),
        }
    )
    found = {}
    last = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        found[name] = time.perf_counter() - last
        last = time.perf_counter()

    with session(here) as ray:
        ray.call(_nothing)
        lap("ray")
        ray.pool(Idle).call("run")
        lap("actors")
        ray.train(
            _no_training,
            [{}] * request["jobs"],
            storage=request["folder"],
            gpu=spec.train.student not in packaged.SMALL,
        )
        lap("training")
    return found


def main() -> None:
    """Do what the command line asks for."""
    work = {"start": start, "embed": embed, "mine": mine, "train": train, "evaluate": evaluate}
    found = work[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
    found = {
        name: [asdict(each) for each in value] if name == "timings" else value
        for name, value in found.items()
    }
    Path(sys.argv[3]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
