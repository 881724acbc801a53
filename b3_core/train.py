"""A student trained on a batch plan: sentence-transformers' trainer does the looping.

    plan, pair tables -> PlanSampler -> trainer: loss, gradient, optimizer step -> saved model

The loss is InfoNCE from query to positive (van den Oord et al., arXiv 1807.03748) over the rows of
a batch, gathered over devices: the mean over i of ``-log softmax_j(cos(q_i, p_j) / temperature)``
at j = i. The learning rate rises linearly from zero and falls linearly back to it.

Legend: S batches, B rows of a batch.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.utils import logging as transformers_logging

from b3_core import packaged, teacher
from b3_core.batches import BatchPlan
from b3_core.config import TrainSpec
from b3_core.errors import B3Error, InputError
from b3_core.pairs import PairTable
from b3_core.progress import Progress, silent
from b3_core.sampler import for_trainer, row_dataset
from b3_core.static import SparseMean, TokenCollator, TokenTable, is_static

VERSION = 1

# As TrainSpec.learning_rate says: what is trained already wants smaller steps, and a batch of
# four times the rows, whose gradient has half the noise, twice the step (square-root scaling for
# Adam: Malladi et al. 2022, arXiv 2205.10287).
_RATE = {"random": 1e-2, "static": 1.5e-3, "transformer": 2e-5}
_RATE_ROWS = 64
_CACHED_FROM = 256  # rows a device: beyond, gradients are cached to bound memory
_CACHED_ROWS = 64  # rows of one forward pass then; does not change the gradient
_POINTS = 50  # of the loss curve


@dataclass(frozen=True)
class TrainResult:
    """What a training run did."""

    steps: int
    examples_seen: int
    """Rows of all batches, over all epochs and processes."""
    seconds: float
    """Wall time of tokenising and training, without loading and saving."""
    loss: list[tuple[int, float]]
    """(step, mean loss of the steps since the entry before); steps count from 1."""


def train_student(
    pairs: Sequence[PairTable],
    plan: BatchPlan,
    spec: TrainSpec,
    *,
    seed: int,
    output: Path,
    initial: Path | None = None,
    span: tuple[float, float] = (0.0, 1.0),
    progress: Progress = silent,
) -> TrainResult:
    """Train on every batch of the plan, in its order, and save the model into ``output``.

    With several processes (torchrun, Ray Train) each batch is shared equally, the loss is over the
    whole of it, and the first process saves. A static student trains on the CPU, on one thread and
    in float32 whatever ``spec.precision``: at its size anything else only waits.

    Parameters
    ----------
    pairs
        The datasets' rows, in the order of ``plan.dataset_S``.
    seed
        Decides the initial weights and every random choice. On a CPU the same seed gives the same
        weights, bit for bit; global random states are put back afterwards.
    output
        Folder for ``SentenceTransformer(output)``; nothing else is written.
    initial
        Folder of the model to go on with, instead of ``spec.student``.
    span
        Which part of the whole training this is, of 0 to 1: the learning rate goes on from where
        the part before it ended. The optimizer's moments begin anew.
    progress
        Told the steps done.

    Raises
    ------
    InputError
        The student cannot be loaded, or the batches cannot be shared among the processes.
    B3Error
        The loss became infinite or NaN; the step is named.
    """
    with _seeded(seed), _no_bars():
        model = build_student(spec, seed=seed, initial=initial)
        static = is_static(model)
        with _threads(1 if static else torch.get_num_threads()):
            started = time.monotonic()
            trainer = _trainer(model, spec, pairs=pairs, plan=plan, seed=seed, output=output)
            trainer.rate_factor = _schedule(len(plan.row_SB), spec.warmup_ratio, span)
            watch = _Watch(trainer, progress)
            trainer.add_callback(watch)
            trainer.train()
            seconds = time.monotonic() - started
        if trainer.is_world_process_zero():
            model.save_pretrained(str(output), create_model_card=False, safe_serialization=True)
    return TrainResult(len(plan.row_SB), plan.row_SB.size, seconds, watch.curve)


def build_student(
    spec: TrainSpec, *, seed: int, initial: Path | None = None
) -> SentenceTransformer:
    """Return the student before training; only ``static`` starts from random weights.

    Its prompts are saved with it, as ``query`` and ``document``. ``initial`` is the folder of one
    that was trained before.
    """
    if initial is not None:
        model = teacher.load_model(str(initial), revision=None)
    elif spec.student == "static":
        model = packaged.static_student(spec.dim, seed)
    elif spec.student == "tokens":
        model = packaged.token_student()
    else:
        model = teacher.load_model(spec.student, revision=spec.revision)
    if spec.max_length is not None:
        packaged.limit_length(model, spec.max_length)
    if is_static(model):
        model.to("cpu")
    model.prompts = {"query": spec.query_prompt, "document": spec.positive_prompt}
    model.default_prompt_name = None
    return model


class _Trainer(SentenceTransformerTrainer):  # type: ignore[misc]
    """The trainer without what a plan has no use for, keeping the loss of every step."""

    rate_factor: Callable[[int], float]
    lr_scheduler: Any

    def __init__(self, **settings: Any) -> None:
        self.step_losses: list[torch.Tensor] = []
        super().__init__(**settings)
        self.remove_callback(PrinterCallback)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LambdaLR:
        """Follow ``rate_factor``, which may begin in the middle of a longer training."""
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, self.rate_factor
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(self, *args: Any, **settings: Any) -> Any:
        loss = super().compute_loss(*args, **settings)
        self.step_losses.append(loss.detach().float())
        return loss

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Write no model card: it samples rows and describes them at every start."""

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        # Without clipping the norm is computed for the log alone, and sparse gradients have none.
        return grad_norm


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Tells progress, keeps the loss curve, and stops at a loss that is no number."""

    def __init__(self, trainer: _Trainer, progress: Progress) -> None:
        self.curve: list[tuple[int, float]] = []
        self._trainer, self._progress = trainer, progress

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        step, steps = state.global_step, state.max_steps
        # The loss is read now and then: reading waits for the device.
        if step % max(1, steps // _POINTS) and step != steps:
            return
        losses = torch.stack(self._trainer.step_losses)
        self._trainer.step_losses.clear()
        # Every process sees every loss, so that all stop at the same step.
        means = self._trainer.accelerator.reduce(losses, "mean").tolist()
        self._check(means, first=step - len(means) + 1)
        self.curve.append((step, float(np.mean(means))))
        self._progress(step, steps)

    @staticmethod
    def _check(losses: Sequence[float], *, first: int) -> None:
        bad = np.flatnonzero(~np.isfinite(losses))
        if bad.size:
            raise B3Error(
                f"the loss is {losses[bad[0]]} at step {first + bad[0]}",
                expected="a finite number",
                remedy="lower train.learning_rate, or set train.precision: fp32",
            )


def _trainer(
    model: SentenceTransformer,
    spec: TrainSpec,
    *,
    pairs: Sequence[PairTable],
    plan: BatchPlan,
    seed: int,
    output: Path,
) -> _Trainer:
    size = plan.row_SB.shape[1]
    arguments = _arguments(model, spec, plan=plan, seed=seed, output=output)
    processes = arguments.world_size  # known once the arguments have joined the process group
    arguments.batch_sampler = for_trainer(
        plan, [len(table) for table in pairs], processes=processes
    )
    arguments.per_device_train_batch_size = size // processes
    loss = _loss(model, spec, rows=size // processes, gather=processes > 1)
    if not is_static(model):
        return _Trainer(model=model, args=arguments, train_dataset=row_dataset(pairs), loss=loss)
    _check_backend()
    model[0].embedding = SparseMean.of(model[0].embedding)
    tokenizer = model[0].tokenizer
    return _Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"row": np.arange(sum(map(len, pairs)))}),
        data_collator=TokenCollator(
            TokenTable.of(tokenizer, [part.queries for part in pairs], spec.query_prompt),
            TokenTable.of(tokenizer, [part.positives for part in pairs], spec.positive_prompt),
        ),
        loss=loss,
        optimizers=(torch.optim.SparseAdam(model.parameters(), lr=arguments.learning_rate), None),
    )


def _arguments(
    model: SentenceTransformer, spec: TrainSpec, *, plan: BatchPlan, seed: int, output: Path
) -> SentenceTransformerTrainingArguments:
    static = is_static(model)
    rows = plan.row_SB.shape[1]
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(output),
        num_train_epochs=1,  # the sampler goes through all epochs of the plan in one pass
        learning_rate=spec.learning_rate or _rate(model, spec, rows=rows),
        optim="adamw_torch",
        max_grad_norm=0.0 if static else 1.0,
        prompts={"query": spec.query_prompt, "positive": spec.positive_prompt},
        bf16=spec.precision == "bf16",
        # Where it is left out, processes on a machine without a GPU each train alone.
        use_cpu=model.device.type == "cpu",
        ddp_find_unused_parameters=False if static else None,
        dataloader_drop_last=True,  # a plan's batches are all full
        dataloader_pin_memory=False,
        seed=seed,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    # One process drives one device: DataParallel would multiply the batch by the GPUs it sees.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _rate(model: SentenceTransformer, spec: TrainSpec, *, rows: int) -> float:
    """Return the peak learning rate for batches of ``rows``, where CONFIG leaves it open."""
    if not is_static(model):
        kind = "transformer"
    else:
        kind = "random" if spec.student == "static" else "static"
    return _RATE[kind] * math.sqrt(rows / _RATE_ROWS)


def _schedule(steps: int, warmup_ratio: float, span: tuple[float, float]) -> Callable[[int], float]:
    """Return the learning rate's factor by step: linear up, then linear down to 0 at the end.

    The steps are those of one ``span`` of the whole training.
    """
    start, stop = span
    whole = round(steps / (stop - start))
    before, warm = round(start * whole), round(warmup_ratio * whole)

    def factor(step: int) -> float:
        at = before + step
        return at / max(1, warm) if at < warm else max(0.0, (whole - at) / max(1, whole - warm))

    return factor


def _check_backend() -> None:
    """Refuse a process group that cannot add up the gradients of a student on the CPU."""
    group = torch.distributed
    if group.is_available() and group.is_initialized() and group.get_backend() == "nccl":
        raise InputError(
            "a static student trains on the CPU, but its processes are joined over GPUs (nccl)",
            expected="the gloo backend",
            remedy="set compute.gpus_per_worker: 0",
        )


def _loss(
    model: SentenceTransformer, spec: TrainSpec, *, rows: int, gather: bool
) -> torch.nn.Module:
    settings = {"scale": 1 / spec.temperature, "gather_across_devices": gather}
    if rows <= _CACHED_FROM or is_static(model):
        return MultipleNegativesRankingLoss(model, **settings)
    return CachedMultipleNegativesRankingLoss(model, mini_batch_size=_CACHED_ROWS, **settings)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global random generators that libraries draw from, and put them back at the end."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - not ours
    try:
        with torch.random.fork_rng():
            set_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers from drawing progress bars while weights are read and written."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
