"""A training that was interrupted goes on, and ends as if it had not been."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from b3_core import train
from b3_core.checkpoints import STAGE, Checkpoints
from b3_core.config import LoraSpec, TrainSpec
from b3_core.errors import StoppedError
from b3_core.garbage import find_orphans
from b3_core.negatives import Negatives
from b3_core.store import Address, ArtifactStore
from tests import tiny
from tests.core.test_train import PAIRS, PLAN, SPEC, TEXTS

STUDENT = Address("demo", "student", "0123456789abcdef0123")
HARD = Negatives(np.random.default_rng(0).integers(-1, 12, (*PLAN.row_SB.shape, 2), np.int32))
STEPS = len(PLAN.row_SB)


class Stopped(Exception):
    """What kills a training in these tests."""


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """One with dropout: its random generators are part of where training is."""
    words = [text for pair in TEXTS for text in pair]
    folder = tiny.bert(words, tmp_path_factory.mktemp("bert"))
    return TrainSpec(student=str(folder), learning_rate=1e-3)


def run(spec, output, *, checkpoints=None, stop_at=None, negatives=HARD):
    def progress(step, steps):
        if step == stop_at:
            raise Stopped

    return train.train_student(
        PAIRS,
        PLAN,
        spec,
        seed=5,
        output=output,
        negatives=negatives,
        checkpoints=checkpoints,
        progress=progress,
    )


def student(folder):
    (file,) = folder.glob("model.safetensors")
    return load_file(file)


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize(
    "kind",
    ["static", *(pytest.param(k, marks=pytest.mark.slow) for k in ("lora", "bert", "chunks"))],
)
def test_it_ends_with_the_same_bits(kind, spec, tmp_path):
    chosen = {
        "static": SPEC,
        "bert": spec,
        "lora": spec.model_copy(update={"lora": LoraSpec(r=2)}),
        "chunks": spec.model_copy(update={"chunk_rows": 3}),
    }[kind]
    whole = run(chosen, tmp_path / "whole")
    store = ArtifactStore(str(tmp_path / "store"))
    checkpoints = Checkpoints(store, STUDENT, seconds=0)  # one a step
    for stop_at in (4, 11):
        with pytest.raises(Stopped):
            run(chosen, tmp_path / "killed", checkpoints=checkpoints, stop_at=stop_at)
        assert len(store.artifacts("demo", STAGE)) == 1  # the one before it is gone
    steps = []
    result = train.train_student(
        PAIRS,
        PLAN,
        chosen,
        seed=5,
        output=tmp_path / "again",
        negatives=HARD,
        checkpoints=checkpoints,
        progress=lambda step, steps_: steps.append(step),
    )
    # The checkpoint of a step is written after its progress is told: 11 was never kept.
    assert steps == list(range(11, STEPS + 1))
    same(student(tmp_path / "again"), student(tmp_path / "whole"))
    assert result.loss == whole.loss
    assert result.examples_seen == whole.examples_seen
    checkpoints.clear()
    assert not store.artifacts("demo", STAGE)
    assert not list((tmp_path / "store" / ".notes").iterdir())


def test_told_to_end_it_keeps_the_step_it_is_at(tmp_path):
    whole = run(SPEC, tmp_path / "whole")
    store = ArtifactStore(str(tmp_path / "store"))
    asked = iter([False] * 6 + [True] + [False] * 4 + [True] + [False] * STEPS)
    checkpoints = Checkpoints(store, STUDENT, seconds=1000, stopping=lambda: next(asked))
    for step in (7, 12):
        with pytest.raises(StoppedError, match=f"after step {step} of {STEPS}; the same command"):
            run(SPEC, tmp_path / "stopped", checkpoints=checkpoints)
        (kept,) = store.artifacts("demo", STAGE)
        assert kept.record["settings"] == {"step": step}
        assert not (tmp_path / "stopped").exists()
    result = run(SPEC, tmp_path / "again", checkpoints=checkpoints)
    same(student(tmp_path / "again"), student(tmp_path / "whole"))
    assert result.loss == whole.loss


def test_told_to_end_at_its_last_step_it_is_done(tmp_path):
    store = ArtifactStore(str(tmp_path / "store"))
    calls = []
    checkpoints = Checkpoints(store, STUDENT, 1000, lambda: calls.append(1) or len(calls) == STEPS)
    run(SPEC, tmp_path / "whole", checkpoints=checkpoints)
    assert len(calls) == STEPS - 1
    assert not store.artifacts("demo", STAGE)


def test_no_pickle_is_in_a_checkpoint_but_torchs_own(spec, tmp_path):
    store = ArtifactStore(str(tmp_path / "store"))
    checkpoints = Checkpoints(store, STUDENT, seconds=0)
    with pytest.raises(Stopped):
        run(spec, tmp_path / "model", checkpoints=checkpoints, stop_at=3)
    with checkpoints.last() as folder:
        assert sorted(file.name for file in folder.iterdir()) == [
            "curve.json",
            "optimizer.pt",  # read with weights_only
            "random.safetensors",
            "scheduler.pt",
            "trained.safetensors",
            "trainer_state.json",
        ]
        assert json.loads((folder / "trainer_state.json").read_bytes())["global_step"] == 2


@pytest.mark.slow
def test_a_checkpoint_that_is_gone_costs_work_only(spec, tmp_path):
    store = ArtifactStore(str(tmp_path / "store"))
    checkpoints = Checkpoints(store, STUDENT, seconds=0)
    with pytest.raises(Stopped):
        run(spec, tmp_path / "killed", checkpoints=checkpoints, stop_at=3)
    (kept,) = store.artifacts("demo", STAGE)
    store.discard(kept.address)
    with checkpoints.last() as folder:
        assert folder is None
    run(spec, tmp_path / "again", checkpoints=checkpoints)
    run(spec, tmp_path / "whole")
    same(student(tmp_path / "again"), student(tmp_path / "whole"))


def test_none_is_written_before_its_time(spec, tmp_path):
    store = ArtifactStore(str(tmp_path / "store"))
    checkpoints = Checkpoints(store, STUDENT, seconds=1000)
    with pytest.raises(Stopped):
        run(spec, tmp_path / "killed", checkpoints=checkpoints, stop_at=9)
    assert not store.artifacts("demo", STAGE)
    assert not find_orphans(store, older_than=-1)
