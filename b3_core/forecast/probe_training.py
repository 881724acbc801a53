"""The probes of training and of evaluation: a student of some steps, and how it is judged.

Legend: Q queries, C entries, D width.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from b3_core.config import PipelineSpec
from b3_core.embed import load_student
from b3_core.forecast.jobs import jobs_of, key_of
from b3_core.forecast.probing import read, sample_of, stretched, timing_of
from b3_core.forecast.rates import Timing
from b3_core.forecast.sample import for_training
from b3_core.store import ArtifactStore
from b3_core.teacher import Embeddings

_ENTRIES = 1 << 16
_ATTEMPTS, _GROWTH = 4, 32  # to find a training that is long enough: each at most so much longer


def train(request: Mapping[str, Any]) -> dict[str, Any]:
    """Train a student of a few steps twice, then of as many as fit into some seconds.

    And evaluate the first, where that is asked for.
    """
    import torch  # noqa: F401, PLC0415 - a worker has it before its first student

    sample = sample_of(request)
    folder, batch = Path(request["folder"]), request["batch_size"]
    most = min(sample.rows.values())
    specs: list[PipelineSpec] = []

    def run(name: str, rows: int, epochs: int, seed: int, *, cold: bool) -> list[Timing]:
        rows = min(most, max(rows, 2 * batch))
        spec = for_training(sample.cut(folder / name, rows), rows=rows, epochs=epochs)
        specs.append(spec.model_copy(update={"seeds": (seed,)}))
        return _trained(specs[-1], cold=cold)

    small = 4 * batch + batch // 2  # what is held out of it leaves four batches
    first = run("first", small, 1, 0, cold=True)
    again = run("again", small, 1, 1, cold=False)
    timings, one = [*first, *again], again[0]
    for attempt in range(_ATTEMPTS):
        a_step = max(one.seconds, 1e-3) / max(one.work["steps"], 1)
        steps = max(2 * one.work["steps"], request["seconds"] / a_step)
        steps = min(request["steps"], steps, _GROWTH * one.work["steps"])
        # As many epochs as the run has: what a text takes when it is first seen, it takes once.
        epochs = max(request["epochs"], -(-int(steps) * batch // most))
        rows = round(steps * batch / epochs / (1 - request["holdout"])) + batch
        found = run(f"more-{attempt}", rows, epochs, 2 + attempt, cold=False)
        one = found[0]
        if one.seconds > request["seconds"] / 2 or steps >= request["steps"]:
            break
    trained = specs[0].model_dump(mode="json")
    timings += found
    if request["evaluate"] is not None:
        judged = evaluate({**request["evaluate"], "trained": trained}, cold=False)
        timings += judged["timings"]
    return {"timings": timings, "trained": trained}


def _trained(spec: PipelineSpec, *, cold: bool) -> list[Timing]:
    store, plan, _, totals = read(spec)
    leg = plan.legs[0]
    rng = np.random.default_rng(0)
    for vectors in leg.vectors:
        for shard in vectors.shards:
            with store.draft(shard.address, lineage={}, settings={}) as draft:
                drawn = rng.standard_normal((shard.stop - shard.start, 32), dtype=np.float32)
                unit = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
                Embeddings(unit, unit).save(draft)
    mined = leg.vectors, leg.ranks, leg.graphs, leg.communities, leg.manifests.values()
    for part in mined:
        for stage in part:
            stage.run(store)
    job_of = {job.key: job for job in jobs_of(plan, spec, totals, None)}
    found: list[Timing] = []
    for student in leg.students.values():
        student.run(store)
        key = key_of(student)
        found.append(timing_of(job_of[key], student, store, cold=cold and not found))
    return found


def evaluate(request: Mapping[str, Any], *, cold: bool = True) -> dict[str, Any]:
    """Evaluate the student that ``train`` made first; then time loading, embedding and scoring.

    ``cold``: whether nothing was trained in this process before.
    """
    from b3_core.evaluate import retrieval  # noqa: PLC0415

    sample = sample_of(request)
    spec = PipelineSpec.model_validate(request["trained"])
    store, plan, _, totals = read(spec)
    job_of = {job.key: job for job in jobs_of(plan, spec, totals, None)}
    stage = next(iter(plan.evaluations.values()))
    key = key_of(stage)
    stage.run(store)
    timings = [timing_of(job_of[key], stage, store, cold=cold)]

    def timed(work: dict[str, float], call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        made = call()
        took = time.perf_counter() - began
        timings.append(Timing("evaluation", key, work, took))
        return made

    encoder = timed({"once": 1.0}, lambda: load_student(store, stage.student.address, spec.train))
    texts = []
    # Other rows than those of the evaluation: a static student keeps what it has tokenised.
    wider = sample.cut(Path(request["folder"], "evaluate"), request["texts"])
    _, wide, _, _ = read(wider)
    ref = wide.legs[0].vectors[0].ref
    wide_store = ArtifactStore(wider.store.root)
    inputs = ref.table(wide_store).inputs("positive", ref.shelf(wide_store))
    size, start, spent = 32, 0, 0.0
    while start < len(inputs) and spent < request["seconds"] / 4:
        part = inputs[start : start + size]
        began = time.perf_counter()
        vectors_CD = encoder.encode(part)
        spent = time.perf_counter() - began
        texts.append(Timing("evaluation", key, {"texts": float(len(part))}, spent))
        start, size = start + size, 4 * size
    timings.append(max(texts, key=lambda each: each.work["texts"]))
    entries = min(request["entries"], _ENTRIES)
    corpus_CD = stretched(vectors_CD, np.arange(entries))
    asked = min(request["queries"], entries)
    group_C = np.arange(entries, dtype=np.int32)

    def ranked(queries: int) -> Any:
        return retrieval.rank_of_positive(
            corpus_CD[:queries], corpus_CD, group_Q=group_C[:queries], group_C=group_C
        )

    ranked(min(asked, 16))  # compiled, and tiles warm
    timed({"scores": float(asked) * entries}, lambda: ranked(asked))
    return {"timings": timings}
