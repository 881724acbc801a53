"""A student trained on a batch plan: sentence-transformers' trainer does the looping.

    plan, negatives, pair tables -> slots -> PlanSampler -> trainer: loss (b3_core.loss), gradient,
    optimizer step, now and then a checkpoint -> saved model

The learning rate rises linearly from zero and falls linearly back to it. A training that goes on
from a checkpoint sees the batches that are left, in their order, and ends, on a CPU, with the
weights of one that was never interrupted, bit for bit.

Legend: S batches, B rows of a batch.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from b3_core import packaged
from b3_core.batches import BatchPlan
from b3_core.checkpoints import Checkpoints
from b3_core.collate import TokenCollator
from b3_core.config import ComputeSpec, TrainSpec
from b3_core.errors import InputError, StoppedError
from b3_core.inputs import Shelf, Shelves
from b3_core.loggers import end_loggers, loggers
from b3_core.loss import GroupedInfoNCE
from b3_core.margin import PositiveMargin, Vectors
from b3_core.multimodal import takes_media
from b3_core.negatives import Negatives
from b3_core.pairs import PairTable
from b3_core.progress import Progress, silent
from b3_core.sampler import TrainerSampler
from b3_core.scratch import scratch
from b3_core.slots import Marks, Slots, numbered, row_dataset, slot_dataset
from b3_core.static import SparseMean, TokenTable, is_static
from b3_core.student import build_student, keep_adapters, merge_adapters, save_memory
from b3_core.teacher import seeing
from b3_core.trainer import PlanTrainer, Watch, steps_a_point
from b3_core.vision import has_flat_tokens

# As TrainSpec.learning_rate says: what is trained already wants smaller steps, and a batch of
# four times the rows, whose gradient has half the noise, twice the step (square-root scaling for
# Adam: Malladi et al. 2022, arXiv 2205.10287).
_RATE = {"random": 1e-2, "static": 1.5e-3, "glyphs": 4e-3, "transformer": 2e-5, "adapters": 1e-4}
_RATE_ROWS = 64
_CACHED_FROM = 256  # rows a device: beyond, gradients are cached to bound memory
_CACHED_ROWS = 64  # rows of one forward pass then; does not change the gradient


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
    negatives: Negatives | None = None,
    prompts: Sequence[tuple[str, str]] = (),
    teacher_of: Sequence[tuple[Vectors, Vectors]] = (),
    shelf_of: Sequence[Shelf | None] = (),
    initial: Path | None = None,
    adapters: Path | None = None,
    span: tuple[float, float] = (0.0, 1.0),
    checkpoints: Checkpoints | None = None,
    compute: ComputeSpec | None = None,
    run: str = "student",
    progress: Progress = silent,
) -> TrainResult:
    """Train on every batch of the plan, in its order, and save the model into ``output``.

    With several processes (torchrun, Ray Train) each batch is shared equally, the loss is over the
    whole of it, and the first process saves. A static student trains on the CPU, on one thread and
    in float32 whatever ``spec.precision``: at its size anything else only waits.

    Parameters
    ----------
    pairs
        The datasets' rows, in the order of ``plan.dataset_SB``.
    seed
        Decides the initial weights and every random choice. On a CPU the same seed gives the same
        weights, bit for bit; global random states are put back afterwards.
    output
        Folder for ``SentenceTransformer(output)``; nothing else is written but ``adapters``.
    negatives
        Hard negatives of every slot; none by default.
    prompts
        What is put before each dataset's queries and positives; what ``spec`` says, by default.
    teacher_of
        The teacher's vectors of each dataset's queries and positives, N x D: what
        ``spec.positive_margin`` needs, and nothing else.
    shelf_of
        Where each dataset's images and videos are; None, or left out, where it has none.
    initial
        What to go on from: the folder of a model, instead of ``spec.student``; where adapters are
        trained, the file of those.
    adapters
        File for the adapters that are trained, as they are before they are merged.
    span
        Which part of the whole training this is, of 0 to 1: the learning rate goes on from where
        the part before it ended. The optimizer's moments begin anew.
    checkpoints
        Where to keep checkpoints, and to look for one to go on from.
    compute
        Whether to keep activations, and where else losses go.
    run
        What the run is called there.
    progress
        Told the steps done.

    Raises
    ------
    InputError
        The student cannot be loaded, or the batches cannot be shared among the processes.
    StoppedError
        It was told to end (``checkpoints.stopping``), and the step it was at is kept.
    B3Error
        The loss became infinite or NaN; the batch is named, and nothing was updated by it.
    """
    on_cpu = spec.student in packaged.SMALL
    with _seeded(seed, on_cpu=on_cpu), _no_bars(), ExitStack() as stack:
        model = build_student(spec, seed=seed, initial=initial)
        small = is_static(model) or spec.student in packaged.SMALL
        stack.enter_context(_threads(1 if small else torch.get_num_threads()))
        compute = compute or ComputeSpec()
        if compute.gradient_checkpointing:
            save_memory(model)
        kept = stack.enter_context(scratch())
        slots = Slots.of_pairs(plan, pairs, negatives)
        marks = None
        if spec.positive_margin is not None:
            margin = PositiveMargin(slots, spec.positive_margin, *zip(*teacher_of, strict=True))
            marks = partial(_as_tensor, margin)
        everywhere = [(spec.query_prompt, spec.positive_prompt)] * len(pairs)
        rows = row_dataset(pairs, prompts or everywhere)
        model.prompts = _named([part.dataset for part in pairs], prompts or everywhere)
        shelves = None
        if takes_media(model):
            shelf_T = shelf_of or [None] * len(pairs)
            shelves = Shelves(shelf_T, [len(part) for part in pairs], seeing(spec))
        elif media := [part.dataset for part in pairs if part.has_media]:
            raise InputError(
                f"dataset {media[0]} has images or videos, but student {spec.student} reads texts",
                expected="a model of images and texts",
                remedy="name one in train.student",
            )
        arguments = _arguments(model, spec, plan=plan, seed=seed, output=str(kept))
        arguments.run_name = run or None
        arguments.dataloader_num_workers = compute.loader_workers if shelves or not small else 0
        factor = _schedule(len(plan.row_SB), spec.warmup_ratio, span)
        began = time.monotonic()
        trainer = _trainer(
            model,
            spec,
            arguments,
            rows=rows,
            slots=slots,
            marks=marks,
            shelves=shelves,
            rate_factor=factor,
        )
        watch = Watch(trainer, progress, checkpoints, began=began)
        trainer.add_callback(watch)
        if trainer.is_world_process_zero():
            for logger in loggers(compute, run):
                trainer.add_callback(logger)
            stack.callback(end_loggers, compute)
        last = None if checkpoints is None else stack.enter_context(checkpoints.last())
        if last is not None:
            watch.restore(last)
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        if watch.stopped:
            raise StoppedError(
                f"the training was told to end, and did after step {trainer.state.global_step} of "
                f"{len(plan.row_SB)}",
                remedy="the same command goes on from there",
            )
        seconds = watch.seconds
        if trainer.is_world_process_zero():
            if adapters is not None:
                keep_adapters(model, adapters)
            merge_adapters(model)
            model.save_pretrained(str(output), create_model_card=False, safe_serialization=True)
    return TrainResult(len(plan.row_SB), plan.row_SB.size, seconds, watch.curve)


def _trainer(
    model: SentenceTransformer,
    spec: TrainSpec,
    arguments: SentenceTransformerTrainingArguments,
    *,
    rows: Dataset,
    slots: Slots,
    marks: Marks | None,
    shelves: Shelves | None,
    rate_factor: Callable[[int], float],
) -> PlanTrainer:
    each, processes = arguments.per_device_train_batch_size, arguments.world_size
    common = {
        "model": model,
        "args": arguments,
        "rate_factor": rate_factor,
        "loss": _loss(model, spec, rows=each, gather=processes > 1),
    }
    if not is_static(model):
        items = slot_dataset(slots, rows, marks=marks, shelves=shelves)
        return PlanTrainer(**common, train_dataset=items, in_parts=shelves is not None)
    _check_backend()
    model[0].embedding = SparseMean.of(model[0].embedding)
    tokenizer = model[0].tokenizer
    return PlanTrainer(
        **common,
        train_dataset=numbered(len(slots)),
        data_collator=TokenCollator(
            slots,
            TokenTable.of(tokenizer, [rows.data["query"]]),
            TokenTable.of(tokenizer, [rows.data["positive"]]),
            TokenTable.of(tokenizer, [rows.data["negative"]])
            if "negative" in rows.column_names
            else None,
            marks,
        ),
        optimizers=(torch.optim.SparseAdam(model.parameters(), lr=arguments.learning_rate), None),
    )


def _named(datasets: Sequence[str], prompts: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the prompts that a student is saved with, as ``encode_query`` and others take them.

    Where datasets have different ones none is the student's: each has its dataset's name before it,
    for ``encode(texts, prompt_name="faq-query")``.
    """
    sides = ("query", "document")
    if len(set(prompts)) == 1:
        return dict(zip(sides, prompts[0], strict=True))
    named = {
        f"{dataset}-{side}": prompt
        for dataset, pair in zip(datasets, prompts, strict=True)
        for side, prompt in zip(sides, pair, strict=True)
    }
    return {**dict.fromkeys(sides, ""), **named}


def _as_tensor(margin: PositiveMargin, slot_x: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(margin(slot_x))  # a collator stacks tensors' rows fast


def _arguments(
    model: SentenceTransformer,
    spec: TrainSpec,
    *,
    plan: BatchPlan,
    seed: int,
    output: str,
) -> SentenceTransformerTrainingArguments:
    static = is_static(model)
    rows = plan.row_SB.shape[1]
    arguments = SentenceTransformerTrainingArguments(
        output_dir=output,
        num_train_epochs=1,  # the sampler goes through all epochs of the plan in one pass
        learning_rate=spec.learning_rate or _rate(model, spec, rows=rows),
        optim="adamw_torch_fused",  # one pass over the weights instead of ten
        max_grad_norm=0.0 if static else 1.0,
        bf16=spec.precision == "bf16" and not static,
        # Where it is left out, processes on a machine without a GPU each train alone.
        use_cpu=model.device.type == "cpu",
        ddp_find_unused_parameters=False if static else None,
        dataloader_drop_last=True,  # a plan's batches are all full
        dataloader_pin_memory=False,
        seed=seed,
        logging_strategy="steps",
        logging_steps=steps_a_point(len(plan.row_SB)),
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    # One process drives one device: DataParallel would multiply the batch by the GPUs it sees.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    # The number of processes is known once the arguments have joined the process group.
    arguments.batch_sampler = TrainerSampler(plan, processes=arguments.world_size)
    arguments.per_device_train_batch_size = rows // arguments.world_size
    return arguments


def _rate(model: SentenceTransformer, spec: TrainSpec, *, rows: int) -> float:
    """Return the peak learning rate for batches of ``rows``, where CONFIG leaves it open."""
    if spec.student == "glyphs":
        kind = "glyphs"
    elif not is_static(model):
        kind = "transformer" if spec.lora is None else "adapters"
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
) -> GroupedInfoNCE:
    chunk_rows = spec.chunk_rows or (_CACHED_ROWS if rows > _CACHED_FROM else None)
    if chunk_rows is not None and chunk_rows >= rows:
        chunk_rows = None  # one chunk bounds nothing, and would be embedded twice
    return GroupedInfoNCE(
        model,
        temperature=spec.temperature,
        gather=gather,
        symmetric=spec.symmetric,
        # Such a student's tokens are in one row: it cannot be cut, and is small.
        chunk_rows=None if has_flat_tokens(model) else chunk_rows,
    )


@contextmanager
def _seeded(seed: int, *, on_cpu: bool = False) -> Iterator[None]:
    """Seed the global random generators that libraries draw from, and put them back at the end."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - not ours
    # To ask a GPU for its state takes seconds and half a gigabyte of it, in every process.
    used = [] if on_cpu or not torch.cuda.is_available() else [torch.cuda.current_device()]
    try:
        with torch.random.fork_rng(devices=used):
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
