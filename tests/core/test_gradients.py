"""Gradients averaged after the backward pass; a student of pictures on two processes and one."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from b3_core.config import TeacherSpec
from b3_core.teacher import Teacher
from tests import tiny
from tests.conftest import ROOT
from tests.core.test_multimodal import pairs

AVERAGED = """
import json, sys, torch
from torch import distributed, nn
from b3_core import gradients
gradients._BUCKET = 5
distributed.init_process_group("gloo")
rank = distributed.get_rank()
parts = [nn.Parameter(torch.zeros(size)) for size in (2, 7, 3, 4, 1)]
parts[4].requires_grad_(False)
parts.append(nn.Parameter(torch.zeros(2, dtype=torch.bfloat16)))
for number, part in enumerate(parts):
    if part.requires_grad and number != 2 and (number != 3 or rank == 1):
        part.grad = torch.full_like(part, 10.0 * number + rank)
gradients.average_gradients(parts)
found = [None if part.grad is None else part.grad.tolist() for part in parts]
open(f"{sys.argv[1]}/{rank}.json", "w").write(json.dumps(found))
"""

TRAINED = """
import sys
from pathlib import Path
import torch
from b3_core.config import TrainSpec
from b3_core.train import train_student
from tests.core.test_multimodal import PLAN, pairs
torch.set_num_threads(1)
folder = Path(sys.argv[1])
table, shelf = pairs(folder, query_text=False)
if "LOCAL_RANK" in __import__("os").environ:
    torch.distributed.init_process_group("gloo")
spec = TrainSpec(student=str(folder / "vlm/model"), learning_rate=1e-3,
                 chunk_rows=int(sys.argv[3]) or None)
train_student([table], PLAN, spec, seed=0, output=folder / sys.argv[2], shelf_of=[shelf])
"""


def run(code: str, *arguments: str, processes: int) -> None:
    torchrun = [
        *("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"),
        "--no-python",
        sys.executable,
    ]
    command = [sys.executable, *(torchrun if processes > 1 else ()), "-c", code, *arguments]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_every_process_gets_the_mean_and_what_nobody_has_stays_absent(tmp_path: Path) -> None:
    run(AVERAGED, str(tmp_path), processes=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first == [[0.5] * 2, [10.5] * 7, None, [15.5] * 4, None, [50.5] * 2]


@pytest.mark.slow
@pytest.mark.parametrize("chunk_rows", ["0", "1"])
def test_a_student_of_pictures_is_the_same_on_two_processes(
    tmp_path: Path, chunk_rows: str
) -> None:
    tiny.qwen2_vl(tmp_path / "vlm")
    run(TRAINED, str(tmp_path), "one", chunk_rows, processes=1)
    run(TRAINED, str(tmp_path), "two", chunk_rows, processes=2)
    table, shelf = pairs(tmp_path, query_text=False)
    vectors = [
        Teacher(TeacherSpec(model=str(tmp_path / name))).encode(table.inputs("query", shelf))
        for name in ("vlm/model", "one", "two")
    ]
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    np.testing.assert_allclose(vectors[1], vectors[2], atol=2e-5)
