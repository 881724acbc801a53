"""Our training job beside sentence-transformers' own trainer: steps a second, memory, waiting.

    pair table -> rows drawn once a case, as many as its steps need
               -> for each repeat, case and method in turn, in a process of its own:
                      train_student on a plan | SentenceTransformerTrainer and its own loss
               -> steps a second, share of them spent waiting for batches, peak memory
               -> medians of the repeats, and ratios of runs that followed one another

What is equal: texts, batches and their order (the plan holds those that the default sampler draws),
initial weights, temperature, learning rate, float32, threads; and fused AdamW for transformers, so
that both come to the same loss. Both save the model at the end. All else is each one's own:

- A static student of ours has one thread, a ``SparseMean`` and SparseAdam, and is tokenised once,
  before the first step: that time is spread over the steps of its epoch. Theirs tokenises every
  batch, and has a plain ``StaticEmbedding``, all threads, and AdamW over the whole vocabulary.
- Rows with the same positive are no negatives of one another in our loss.

Both trainers ask for batches by one method of transformers' Trainer, which is timed: a step is the
time from one call to the next, and waiting is the time inside. Warm-up steps count in neither.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np

from b3_core.bench.machine import machine
from b3_core.pairs import PairTable
from b3_core.progress import Progress, silent
from b3_core.store import open_artifact
from b3_core.usage import gpu_peak, peak_mb

#: Ours first: whoever is second finds the files of the libraries in memory.
METHODS = ("b3", "sentence-transformers")
_CHUNK_ROWS = 64  # of one forward pass where gradients are cached, in both
_TEMPERATURE = 0.05  # sentence-transformers' default scale of 20
_SEED = 0
_RATES = {"static": 1.5e-3, "transformer": 2e-5}


@dataclass(frozen=True)
class Case:
    """What both methods train alike."""

    model: str
    """``tokens``, ``minilm``, or a folder: as ``TrainSpec.student``."""
    batch_size: int
    loss: Literal["plain", "cached"]
    steps: int
    """Steps that are timed."""
    warm_up: int
    """Steps before them, that are not."""
    max_length: int | None = None
    """Tokens of a text at most; the model's own by default."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of a transformer; weights are kept in fp32 by both (autocast)."""

    @property
    def rows(self) -> int:
        """Rows of one epoch; its last step, which fetches no batch any more, is not timed."""
        return self.batch_size * (self.warm_up + self.steps + 1)


def cases(
    models: Sequence[str],
    *,
    steps: int = 20,
    static_steps: int = 250,
    max_length: int = 32,
    large: int = 1024,
    large_steps: int = 2,
    large_max_length: int = 8,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> list[Case]:
    """Return what is measured of each model: batches of 64, and of transformers, large ones too.

    Parameters
    ----------
    models
        Students; a static one, ``tokens``, has steps a hundred times as short.
    steps, static_steps, large_steps
        Timed steps.
    max_length, large_max_length
        Tokens of a text, of transformers. Uncached, 1,024 pairs of 8 tokens take MiniLM 5 GB.
    large
        Rows of a large batch, once plain and once with cached gradients; 0 for none.
    precision
        Of transformers.
    """
    found = []
    for model in models:
        if model == "tokens":
            found.append(Case(model, 64, "plain", static_steps, warm_up=10))
            continue
        case = partial(Case, model, precision=precision)
        found.append(case(64, "plain", steps, warm_up=2, max_length=max_length))
        if large:
            found += [
                case(large, loss, large_steps, warm_up=1, max_length=large_max_length)
                for loss in ("plain", "cached")
            ]
    return found


def bench_train(
    pairs: str,
    measured: Sequence[Case],
    *,
    threads: int = 2,
    repeats: int = 3,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train every case by both methods, each run in a process of its own.

    Parameters
    ----------
    pairs
        URI of an artifact with a pair table ``train``. A case draws its rows from it, some more
        than once only where it has too few.
    measured
        What to train; see :func:`cases`.
    threads
        Of torch and the tokenizer, for every run alike.
    repeats
        Runs of every case and method; all of them take turns.
    progress
        Told the runs done.

    Returns
    -------
    dict
        ``rows``, as :func:`summary` gives them; ``ratios``, as :func:`ratios` does; ``runs``, what
        was measured in each; ``threads``, ``repeats``, ``machine``.

    Raises
    ------
    RuntimeError
        A run failed; the end of what it said is in the message.
    """
    planned = list(product(range(repeats), measured, METHODS))
    runs, about = [], {}
    for done, (repeat, case, method) in enumerate(planned):
        progress(done, len(planned))
        job = {"pairs": pairs, "method": method, "case": asdict(case)}
        found = _in_a_process(job, threads=threads)
        about = found.pop("machine")  # as the process saw it: this one has no torch
        runs.append({"method": method, **asdict(case), "repeat": repeat, **found})
    progress(len(planned), len(planned))
    return {
        "rows": summary(runs),
        "ratios": ratios(runs),
        "runs": runs,
        "threads": threads,
        "repeats": repeats,
        "machine": about,
    }


def summary(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a case and method, in the order of the runs.

    Returns
    -------
    list of dict
        ``method, model, batch_size, loss, max_length, steps``; ``steps_per_second``, the median of
        the repeats, with ``low`` and ``high``; ``peak_mb`` resident, the most of any, and
        ``gpu_peak_mb`` of tensors on a GPU;
        ``data_wait_share``, the median share of the time of steps that they wait for their batch;
        ``tokenise_share``, that of tokenising before the first step in tokenising and steps
        together; ``mean_loss`` of all steps of the last repeat.
    """
    rows = []
    for case in dict.fromkeys(_name(run) for run in runs):
        for method in METHODS:
            those = [run for run in runs if _name(run) == case and run["method"] == method]
            if not those:
                continue
            rate_R = [1 / run["step_seconds"] for run in those]
            columns = ("method", "model", "batch_size", "loss", "max_length", "steps")
            rows.append(
                {
                    **{column: those[0][column] for column in columns},
                    "steps_per_second": round(float(np.median(rate_R)), 4),
                    "low": round(min(rate_R), 4),
                    "high": round(max(rate_R), 4),
                    **{
                        peak: round(max(run[peak] for run in those))
                        for peak in ("peak_mb", "gpu_peak_mb")
                        if peak in those[0]
                    },
                    **{
                        share: round(float(np.median([run[share] for run in those])), 4)
                        for share in ("data_wait_share", "tokenise_share")
                    },
                    "mean_loss": round(those[-1]["mean_loss"], 4),
                }
            )
    return rows


def ratios(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Compare seconds a step of runs of one repeat, and so of neighbours in time.

    Returns
    -------
    dict
        ``b3_over_sentence_transformers``, by case; ``cached_over_plain``, by method, model and
        batch size, where both were run. Each has the ``median``, ``low`` and ``high`` of the
        repeats.
    """
    seconds = {(run["repeat"], run["method"], _name(run)): run["step_seconds"] for run in runs}
    ours, cached = {}, {}
    for run in runs:
        case = _name(run)
        if run["method"] == METHODS[0]:
            ours[case] = _over(seconds, (METHODS[0], case), (METHODS[1], case))
        if run["loss"] == "cached":
            at = (run["method"], case), (run["method"], _name({**run, "loss": "plain"}))
            name = f"{run['method']}: {run['model']}, {run['batch_size']}"
            cached[name] = _over(seconds, *at)
    return {
        "b3_over_sentence_transformers": {name: found for name, found in ours.items() if found},
        "cached_over_plain": {name: found for name, found in cached.items() if found},
    }


def _name(run: Mapping[str, Any]) -> str:
    return f"{run['model']}, {run['batch_size']}, {run['loss']}"


def _over(
    seconds: Mapping[tuple[int, str, str], float], over: tuple[str, str], under: tuple[str, str]
) -> dict[str, float]:
    """Divide run by run; nothing where the two share no repeat."""
    found_R = [
        value / seconds[(repeat, *under)]
        for (repeat, *rest), value in seconds.items()
        if tuple(rest) == over and (repeat, *under) in seconds
    ]
    if not found_R:
        return {}
    figures = {"median": float(np.median(found_R)), "low": min(found_R), "high": max(found_R)}
    return {name: round(value, 4) for name, value in figures.items()}


def _in_a_process(job: Mapping[str, Any], *, threads: int) -> dict[str, Any]:
    # Torch and the tokenizer read these when they are imported.
    count = {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-m", "b3_core.bench.train"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **count},
    )
    if done.returncode:
        raise RuntimeError(f"{job['method']} failed on {job['case']}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@dataclass
class Stopwatch:
    """When a trainer asked for each batch, and when it had it."""

    asked: list[float] = field(default_factory=list)
    given: list[float] = field(default_factory=list)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Time every trainer of this process for a while."""
        from transformers import Trainer  # noqa: PLC0415 - seconds to import

        plain = Trainer.get_batch_samples

        def timed(*args: Any, **settings: Any) -> Any:
            self.asked.append(time.perf_counter())
            found = plain(*args, **settings)
            self.given.append(time.perf_counter())
            return found

        Trainer.get_batch_samples = timed
        try:
            yield
        finally:
            Trainer.get_batch_samples = plain

    def figures(self, warm_up: int, *, before: float = 0.0) -> dict[str, float]:
        """Return ``step_seconds``, ``data_wait_share`` and ``tokenise_share`` after the warm-up.

        Nor does the last step count, which fetches no batch.

        Parameters
        ----------
        warm_up
            Steps that do not count.
        before
            Seconds of tokenising before the first step; spread over all of them, in
            ``step_seconds``.
        """
        asked_S, given_S = np.array(self.asked), np.array(self.given)
        wait = float((given_S - asked_S)[warm_up:-1].mean())
        bare = float(np.diff(asked_S)[warm_up:].mean())
        step = bare + before / len(asked_S)
        return {
            "step_seconds": step,
            "data_wait_share": wait / bare,
            "tokenise_share": 1 - bare / step,
        }


def _measure(job: Mapping[str, Any]) -> dict[str, Any]:
    case = Case(**job["case"])
    table = _rows(job["pairs"], case.rows)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory(prefix="b3-bench-train-") as output, watch.held():
        run = _ours if job["method"] == "b3" else _theirs
        loss, before = run(table, case, Path(output))
    figures = watch.figures(case.warm_up, before=before)
    peaks = {"peak_mb": peak_mb(), **gpu_peak()}
    return {**figures, **peaks, "mean_loss": loss, "machine": machine()}


def _rows(uri: str, rows: int) -> PairTable:
    """Draw rows by a seed; all of the table as often as it takes."""
    whole = PairTable.load(open_artifact(uri), "train")
    order = np.random.default_rng(_SEED).permutation(len(whole))
    return PairTable(whole.dataset, whole.table.take(np.resize(order, rows)).combine_chunks())


def _spec(case: Case) -> Any:
    from b3_core.config import TrainSpec  # noqa: PLC0415 - see _ours

    kind = "static" if case.model == "tokens" else "transformer"
    return TrainSpec(
        student=case.model,
        temperature=_TEMPERATURE,
        learning_rate=_RATES[kind],
        warmup_ratio=0.0,
        max_length=case.max_length,
        precision=case.precision,
        # A chunk of the whole batch caches nothing; left out, large batches are cached.
        chunk_rows=_CHUNK_ROWS if case.loss == "cached" else case.batch_size,
    )


def _ours(table: PairTable, case: Case, output: Path) -> tuple[float, float]:
    """Train by :func:`train_student`; return the mean loss, and seconds of tokenising before."""
    from b3_core.static import TokenTable, is_static  # noqa: PLC0415 - torch: only in the processes
    from b3_core.student import build_student  # noqa: PLC0415
    from b3_core.train import train_student  # noqa: PLC0415

    spec = _spec(case)
    before = 0.0
    model = build_student(spec, seed=_SEED)
    if is_static(model):
        started = time.perf_counter()
        for column in (table.queries, table.positives):  # the training finds them done
            TokenTable.of(model[0].tokenizer, [column], "")
        before = time.perf_counter() - started
    del model
    found = train_student([table], _plan(case), spec, seed=_SEED, output=output)
    step_P, loss_P = np.array(found.loss).T
    return float(np.average(loss_P, weights=np.diff(step_P, prepend=0))), before


def _theirs(table: PairTable, case: Case, output: Path) -> tuple[float, float]:
    """Train by sentence-transformers; return the mean loss, and nothing that was done before."""
    from sentence_transformers import (  # noqa: PLC0415 - as in _ours
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import (  # noqa: PLC0415
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )

    from b3_core.slots import row_dataset  # noqa: PLC0415
    from b3_core.student import build_student  # noqa: PLC0415

    spec = _spec(case)
    model = build_student(spec, seed=_SEED)
    scale = 1 / spec.temperature
    if case.loss == "cached":
        loss = CachedMultipleNegativesRankingLoss(model, scale=scale, mini_batch_size=_CHUNK_ROWS)
    else:
        loss = MultipleNegativesRankingLoss(model, scale=scale)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(output / "trainer"),
        num_train_epochs=1,
        per_device_train_batch_size=case.batch_size,
        learning_rate=spec.learning_rate,
        bf16=case.precision == "bf16",
        seed=_SEED,
        dataloader_pin_memory=model.device.type != "cpu",  # it warns where there is nothing to pin
        save_strategy="no",  # ours writes no checkpoints either unless asked to
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=row_dataset([table]), loss=loss
    )
    found = trainer.train()
    model.save_pretrained(str(output), create_model_card=False)
    return float(found.training_loss), 0.0


def _plan(case: Case) -> Any:
    """Return the batches that sentence-transformers' default sampler draws with the same seed."""
    import torch  # noqa: PLC0415 - as in _ours
    from torch.utils.data import RandomSampler  # noqa: PLC0415

    from b3_core.batches import BatchPlan  # noqa: PLC0415

    drawn = RandomSampler(range(case.rows), generator=torch.Generator().manual_seed(_SEED))
    row_SB = np.array(list(drawn), np.int32).reshape(-1, case.batch_size)
    batches = len(row_SB)
    return BatchPlan(
        row_SB=row_SB,
        dataset_SB=np.zeros(row_SB.shape, np.int16),
        epoch_S=np.zeros(batches, np.int16),
        community_SB=np.full_like(row_SB, -1),
        left_out=np.zeros((0, 3), np.int32),
    )


if __name__ == "__main__":
    print(json.dumps(_measure(json.load(sys.stdin))))  # noqa: T201 - read by _in_a_process
