"""Where a training's loss and learning rate are written besides the student's own record."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from b3_core.config import ComputeSpec
from b3_core.errors import InputError

_NEEDS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}


def loggers(compute: ComputeSpec, run: str) -> list[Any]:
    """Return a callback of transformers' for each service that CONFIG names.

    Keys and addresses of services come from their own environment variables, never from CONFIG.

    Parameters
    ----------
    run
        Names the run: its folder below ``compute.log_dir``, or its name in a service.

    Raises
    ------
    InputError
        A service's package is not installed.
    """
    return [_logger(name, Path(compute.log_dir, run)) for name in compute.report_to]


def end_loggers(compute: ComputeSpec) -> None:
    """End the runs of services that would else go on with the next training of this process."""
    if "wandb" in compute.report_to:
        import wandb  # noqa: PLC0415 - only if asked for

        wandb.finish()
    if "mlflow" in compute.report_to:
        import mlflow  # noqa: PLC0415 - likewise

        mlflow.end_run()


def _logger(name: str, folder: Path) -> Any:
    from transformers.integrations import (  # noqa: PLC0415 - seconds to import
        TensorBoardCallback,
        get_reporting_integration_callbacks,
    )

    if not any(find_spec(package) for package in _NEEDS[name]):
        raise InputError(
            f"compute.report_to names {name}, which is not installed",
            remedy=f"run: pip install {_NEEDS[name][0]}",
        )
    if name == "tensorboard":
        return TensorBoardCallback(_writer(folder))
    (made,) = get_reporting_integration_callbacks([name])
    return made()


def _writer(folder: Path) -> Any:
    if find_spec("tensorboard"):
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - only if asked for
    else:
        from tensorboardX import SummaryWriter  # noqa: PLC0415 - likewise
    return SummaryWriter(str(folder))
