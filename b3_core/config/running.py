"""Where things are kept and how work is spread: nothing here changes what is made."""

from typing import Literal

from pydantic import Field, field_validator

from b3_core.config.base import Spec, Uri


class StoreSpec(Spec):
    """Where artifacts live. Credentials come from the environment, never from CONFIG."""

    root: Uri = Field(".b3", description="Local folder or s3://bucket/prefix.")
    single_writer: bool = Field(
        False,
        description="Accept a store that ignores If-None-Match (some S3 servers do); then only one "
        "run at a time may write to it.",
    )


class ComputeSpec(Spec):
    """How work is spread; never changes what is made."""

    workers: int | None = Field(
        None,
        ge=1,
        description="Teachers, or students in training that are small or on GPUs, at once; absent: "
        "one a core or GPU.",
    )
    shard_rows: int = Field(
        4096, ge=1, description="Rows a shard; rounded up to whole encoder blocks."
    )
    gpus_per_worker: float = Field(
        0, ge=0, description="GPU share of one actor or trainer: below 1, or a whole number."
    )
    train_workers: int = Field(1, ge=1, description="Data-parallel trainers.")
    loader_workers: int = Field(
        0,
        ge=0,
        description="Processes of a trainer that make batches ahead of it: decode images and "
        "videos, tokenise texts. Of use where a GPU waits for them.",
    )
    checkpoint_minutes: float = Field(
        10, gt=0, description="How long a training runs before it is kept for one that goes on."
    )
    grace_seconds: float = Field(
        20,
        ge=0,
        description="How long a run that is told to end (SIGTERM) waits for its trainings to keep "
        "the step they are at.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations twice instead of keeping them: half the memory."
    )
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        (), description="Where else losses go; keys come from each service's own environment."
    )
    keep_vectors_gb: float = Field(
        20,
        ge=0,
        description="Most space in the store for what a student made of benchmarks, so that it is "
        "not embedded again.",
    )
    log_dir: str = Field("b3-logs", description="Folder of TensorBoard's files, a run a folder.")

    @field_validator("gpus_per_worker")
    @classmethod
    def _part_or_whole(cls, value: float) -> float:
        """Refuse what Ray does: a share that is more than one GPU and no whole number."""
        if value > 1 and value % 1:
            raise ValueError("above 1 a worker takes whole GPUs: 2, 3 and so on")
        return value
