"""sentence-transformers' trainer, with what a plan needs and without what it has no use for.

It checks every loss before the update, keeps a curve of them, and writes checkpoints that hold
what is trained, the optimizer, the schedule and the random generators of every process.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer
from torch.nn.parallel import DistributedDataParallel
from transformers import PrinterCallback, TrainerCallback

from b3_core.checkpoints import Checkpoints
from b3_core.errors import B3Error, CorruptArtifactError
from b3_core.gradients import average_gradients
from b3_core.progress import Progress

_POINTS = 50  # of the loss curve
_TRAINED, _RANDOM, _CURVE = "trained.safetensors", "random.safetensors", "curve.json"


#: How long a batch may take to decode.
_PATIENCE_SECONDS = 600


def steps_a_point(steps: int) -> int:
    """Return how many of a training's steps a point of its loss curve stands for."""
    return max(1, steps // _POINTS)


class PlanTrainer(SentenceTransformerTrainer):  # type: ignore[misc]
    """The trainer of one plan, in one pass over all its epochs.

    Parameters
    ----------
    rate_factor
        The learning rate's factor by step.
    in_parts
        Whether a step may go through some parts of the model only, and through one several times.
    """

    lr_scheduler: Any

    def __init__(
        self, *, rate_factor: Callable[[int], float], in_parts: bool = False, **settings: Any
    ) -> None:
        self.step_losses: list[torch.Tensor] = []
        self.rate_factor, self._in_parts = rate_factor, in_parts
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

    def get_train_dataloader(self) -> Any:
        """Return the batches; processes that decode them and give none are given up.

        They are forked beside threads that may hold a lock, and one that waits for it would wait
        for ever: an error is tried again from the last checkpoint. Started afresh instead, each
        would get a copy of the model, which preprocessing is a method of.
        """
        loader = super().get_train_dataloader()
        if self.args.dataloader_num_workers:
            getattr(loader, "base_dataloader", loader).timeout = _PATIENCE_SECONDS
        return loader

    def training_step(self, model: Any, *args: Any, **settings: Any) -> Any:
        """Do a batch's forward and backward pass; gradients are those of all processes after it.

        Raises
        ------
        B3Error
            The loss is infinite or NaN; nothing has been updated by it.
        """
        if not self._in_parts or not isinstance(model, DistributedDataParallel):
            found = super().training_step(model, *args, **settings)
        else:
            with model.no_sync():
                found = super().training_step(model, *args, **settings)
            average_gradients(model.parameters())
        loss = self.step_losses[-1]
        if not torch.isfinite(loss):  # asked here, a GPU has its backward pass to do meanwhile
            raise B3Error(
                f"the loss is {loss.item()} in batch {self.state.global_step} of the plan",
                expected="a finite number",
                remedy="lower train.learning_rate, or set train.precision: fp32",
            )
        return found

    def compute_loss(self, *args: Any, **settings: Any) -> Any:
        """Return the loss of a batch, and note it."""
        loss = super().compute_loss(*args, **settings)
        self.step_losses.append(loss.detach().float())
        return loss

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Write no model card: it samples rows and describes them at every start."""

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        # Without clipping the norm is computed for the log alone, and sparse gradients have none.
        return grad_norm

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Frozen weights are where they came from, and adapters are a thousandth of them.
        assert output_dir is not None
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_file(self._trained(), Path(output_dir, _TRAINED))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = load_file(Path(resume_from_checkpoint, _TRAINED))
        trained = self._trained()
        if {name: part.shape for name, part in saved.items()} != {
            name: part.shape for name, part in trained.items()
        }:
            raise CorruptArtifactError(
                "the checkpoint to go on from has other weights than the student",
                remedy="delete it (b3 gc lists it), and train from the start",
            )
        with torch.no_grad():
            for name, part in trained.items():
                part.copy_(saved[name])

    def _trained(self) -> dict[str, torch.Tensor]:
        return {name: part for name, part in self.model.named_parameters() if part.requires_grad}

    def _save_rng_state(self, output_dir: str) -> None:
        """Save torch's generators, of every process: dropout draws from nothing else."""
        states = {"cpu": torch.get_rng_state()}
        if self.args.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state()
        everyones = {
            name: self.accelerator.gather(state.to(self.args.device)[None]).cpu()
            for name, state in states.items()
        }
        if self.args.should_save:
            save_file(everyones, Path(output_dir, _RANDOM))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        everyones = load_file(Path(checkpoint, _RANDOM))
        rank = self.args.process_index
        if rank >= len(everyones["cpu"]):
            return  # there are more processes than before
        torch.set_rng_state(everyones["cpu"][rank])
        if self.args.device.type == "cuda" and "cuda" in everyones:
            torch.cuda.set_rng_state(everyones["cuda"][rank])


class Watch(TrainerCallback):  # type: ignore[misc]
    """Tells progress, keeps the loss curve, and has checkpoints written in time.

    Parameters
    ----------
    began
        When the training began, with what there is to do before its first step.

    Attributes
    ----------
    stopped
        Whether the training was told to end, and did after a checkpoint.
    """

    def __init__(
        self,
        trainer: PlanTrainer,
        progress: Progress,
        checkpoints: Checkpoints | None,
        *,
        began: float,
    ) -> None:
        self.curve: list[tuple[int, float]] = []
        self._trainer, self._progress, self._checkpoints = trainer, progress, checkpoints
        self._started, self._kept = began, time.monotonic()
        self._before = 0.0
        self.stopped = False

    @property
    def seconds(self) -> float:
        """Wall time of the training, what was done before the checkpoint included."""
        return self._before + time.monotonic() - self._started

    def restore(self, folder: Path) -> None:
        """Take up where the checkpoint in ``folder`` was."""
        saved: Mapping[str, Any] = json.loads((folder / _CURVE).read_bytes())
        self.curve = [(step, loss) for step, loss in saved["curve"]]
        self._before = saved["seconds"]
        losses = torch.tensor(saved["losses"], device=self._trainer.args.device)
        self._trainer.step_losses = list(losses)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Note the losses now and then: reading them waits for the device."""
        step, steps = state.global_step, state.max_steps
        if step % steps_a_point(steps) == 0 or step == steps:
            losses = torch.stack(self._trainer.step_losses)
            self._trainer.step_losses.clear()
            means = self._trainer.accelerator.reduce(losses, "mean").tolist()
            self.curve.append((step, float(np.mean(means))))
            self._progress(step, steps)
        if self._checkpoints is not None and step < steps:
            due, self.stopped = self._agreed(self._checkpoints)
            control.should_save = due or self.stopped
            control.should_training_stop = self.stopped  # heeded after the save

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Take what the trainer has written into the store."""
        assert self._checkpoints is not None
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        losses = [float(loss) for loss in self._trainer.step_losses]
        if self._trainer.is_world_process_zero():
            kept = {"curve": self.curve, "losses": losses, "seconds": self.seconds}
            (folder / _CURVE).write_text(json.dumps(kept), encoding="utf-8")
            self._checkpoints.keep(folder, state.global_step)
        shutil.rmtree(folder, ignore_errors=True)
        self._kept = time.monotonic()

    def _agreed(self, checkpoints: Checkpoints) -> tuple[bool, bool]:
        """Say whether it is time for a checkpoint, and whether to end: the same in all processes.

        Time is by the first one's clock; all end when one of them is told to.
        """
        first = self._trainer.is_world_process_zero()
        due = first and time.monotonic() - self._kept >= checkpoints.seconds
        stopping = checkpoints.stopping()
        if self._trainer.args.world_size == 1:
            return due, stopping
        flags = torch.tensor([due, stopping], dtype=torch.int32, device=self._trainer.args.device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        return bool(flags[0].item()), bool(flags[1].item())
