"""Losses also go where CONFIG says."""

import importlib.util

import pytest

from b3_core import train
from b3_core.config import ComputeSpec
from b3_core.errors import InputError
from tests.core.test_train import PAIRS, PLAN, SPEC


@pytest.mark.slow  # imports tensorboard
def test_tensorboard_gets_a_folder_a_run(tmp_path):
    compute = ComputeSpec(report_to=("tensorboard",), log_dir=str(tmp_path / "logs"))
    train.train_student(PAIRS, PLAN, SPEC, seed=5, output=tmp_path, compute=compute, run="one")
    (events,) = (tmp_path / "logs" / "one").iterdir()
    assert b"train/loss" in events.read_bytes()
    assert b"train/learning_rate" in events.read_bytes()


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_service_that_is_not_installed(tmp_path):
    compute = ComputeSpec(report_to=("wandb",))
    with pytest.raises(InputError, match="names wandb, which is not installed; run: pip"):
        train.train_student(PAIRS, PLAN, SPEC, seed=5, output=tmp_path, compute=compute)
