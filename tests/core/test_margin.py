"""What the teacher takes for an answer is left out of the loss."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from b3_core import train
from b3_core.config import TrainSpec
from b3_core.margin import PositiveMargin
from b3_core.negatives import Negatives
from b3_core.pairs import NOBODY
from b3_core.slots import Slots
from tests.core.test_sampler import make_plan
from tests.core.test_train import PAIRS, PLAN


def unit(rng, *shape):
    vectors = rng.standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float16)


def slow_twin(margin, s, b, size):
    """Pair by pair: which candidates place b of batch s is contrasted with."""
    slots = margin.slots
    start = np.cumsum([0, *(len(part) for part in margin.query_of)])
    every = range(s * size, (s + 1) * size)
    rows, groups = slots.rows(every), slots.groups(every)

    def vector(side, position):
        table = np.searchsorted(start, position, side="right") - 1
        return side[table][position - start[table]].astype(np.float32)

    def score(i, j):
        return vector(margin.query_of, i) @ vector(margin.positive_of, j)

    own = score(rows[b, 0], rows[b, 0])
    given = groups.shape[1] > rows.shape[1]
    found = []
    for x in range(groups.shape[1]):
        for other in range(size):
            if x == 0 and other == b:
                found.append(True)
                continue
            allowed = groups[other, x] not in (groups[b, 0], NOBODY)
            column = x - (given and x > 0)
            if not (given and x == 1):
                near = score(rows[b, 0], rows[other, column])
                allowed &= not (own > 0 and near > margin.share * own)
            found.append(bool(allowed))
    return found


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 2), st.booleans(), st.booleans())
def test_it_is_the_rule(seed, hard, given_negatives, across):
    rng = np.random.default_rng(seed)
    lengths = [7, 5]
    dataset_SB = np.tile(rng.integers(0, 2, (3, 1)), 4)
    if across:
        dataset_SB = rng.integers(0, 2, (3, 4))
    rows_SB = np.array(lengths)[dataset_SB]
    plan = make_plan(rng.integers(0, rows_SB), dataset_SB, np.zeros(3))
    negatives = Negatives(rng.integers(-1, rows_SB[..., None], (3, 4, hard)).astype(np.int32))
    groups = [rng.integers(0, 4, n).astype(np.int32) for n in lengths]
    given_of = [rng.integers(0, 6, lengths[0]).astype(np.int32), None]
    slots = Slots.of(plan, groups, negatives, given_of=given_of if given_negatives else ())
    query_of, positive_of = ([unit(rng, n, 3) for n in lengths] for _ in range(2))
    margin = PositiveMargin(slots, 0.8, query_of, positive_of)
    for s in range(3):
        for half in (range(4 * s, 4 * s + 2), range(4 * s + 2, 4 * s + 4)):  # two processes
            expected = [slow_twin(margin, s, slot % 4, 4) for slot in half]
            assert margin(half).tolist() == expected


def test_slots_of_two_batches_are_refused():
    plan = make_plan([[0, 1], [2, 3]], [0, 0], [0, 0])
    slots = Slots.of(plan, [np.arange(4, dtype=np.int32)])
    vectors = [unit(np.random.default_rng(0), 4, 3)]
    with pytest.raises(ValueError, match="slots of batches 0 to 1"):
        PositiveMargin(slots, 0.9, vectors, vectors)([1, 2])


@pytest.mark.parametrize("student", ["static", pytest.param("minilm", marks=pytest.mark.slow)])
def test_the_loss_leaves_them_out(student, tmp_path):
    """A teacher that takes all positives of the first batch for answers leaves nothing to learn."""
    plan = make_plan(PLAN.row_SB[:1], PLAN.dataset_S[:1], [0])
    spec = TrainSpec(student=student, dim=16, positive_margin=0.95)
    alike = [np.tile(np.array([1, 0], np.float16), (len(table), 1)) for table in PAIRS]
    result = train.train_student(
        PAIRS, plan, spec, seed=5, output=tmp_path, teacher_of=list(zip(alike, alike, strict=True))
    )
    assert result.loss[0][1] == 0
