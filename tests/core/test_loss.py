"""The loss against a float64 oracle, the library's own loss, and itself cut into chunks."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import nn

from b3_core import packaged, vision
from b3_core.errors import InputError
from b3_core.loss import GroupedInfoNCE
from b3_core.pairs import NOBODY
from tests.conftest import free_port

TEMPERATURE = 0.1


class Layer(nn.Module):
    """A model of one layer and dropout, as the losses call it."""

    def __init__(self, width=6, dropout=0.0, dtype=torch.float64):
        super().__init__()
        self.layer = nn.Linear(width, 5, dtype=dtype)
        self.dropout = nn.Dropout(dropout)

    def __getitem__(self, place):
        return self.layer  # the library looks what kind the first module is of

    def forward(self, features, **unused):
        return {"sentence_embedding": self.dropout(self.layer(features["input_ids"]))}


def oracle(vectors, groups, *, temperature=TEMPERATURE, symmetric=False):
    """The formula, row by row and candidate by candidate, in float64."""
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in vectors]
    rows = len(unit[0])

    def one(query, candidates, own, group):
        scores = [
            query @ candidate / temperature
            for place, (candidate, theirs) in enumerate(candidates)
            if place == own or (theirs not in (group, NOBODY))
        ]
        positive = query @ candidates[own][0] / temperature
        return np.log(np.sum(np.exp(scores))) - positive

    candidates = [
        (column[i], groups[i, c]) for c, column in enumerate(unit[1:]) for i in range(rows)
    ]
    queries = [(unit[0][i], groups[i, 0]) for i in range(rows)]
    there = np.mean([one(unit[0][i], candidates, i, groups[i, 0]) for i in range(rows)])
    back = np.mean([one(unit[1][i], queries, i, groups[i, 0]) for i in range(rows)])
    return (there + back) / 2 if symmetric else there


def draw(seed, rows=7, hard=2):
    rng = np.random.default_rng(seed)
    features = [
        {"input_ids": torch.tensor(rng.standard_normal((rows, 6)))} for _ in range(2 + hard)
    ]
    groups = rng.integers(0, 5, (rows, 1 + hard))
    groups[rng.random(groups.shape) < 0.2] = NOBODY
    groups[:, 0] = rng.integers(0, 5, rows)
    return features, torch.tensor(groups)


def gradients(loss_of, model):
    model.zero_grad()
    loss = loss_of()
    loss.backward()
    return loss.item(), model.layer.weight.grad.clone()


@settings(deadline=None)
@given(
    seed=st.integers(0, 999),
    hard=st.integers(0, 3),
    symmetric=st.booleans(),
    chunk=st.sampled_from([None, 1, 3, 7, 50]),
)
def test_it_is_the_formula(seed, hard, symmetric, chunk):
    features, groups = draw(seed, hard=hard)
    model = Layer()
    loss = GroupedInfoNCE(model, temperature=TEMPERATURE, symmetric=symmetric, chunk_rows=chunk)
    vectors = [model(part)["sentence_embedding"].detach().numpy() for part in features]
    expected = oracle(vectors, groups.numpy(), symmetric=symmetric)
    assert loss(features, groups).item() == pytest.approx(expected, rel=1e-12)


def test_leaving_the_mask_out_changes_the_loss():
    features, groups = draw(3)
    loss = GroupedInfoNCE(Layer(), temperature=TEMPERATURE)
    masked, unmasked = loss(features, groups).item(), loss(features, None).item()
    assert masked < unmasked - 0.01  # fewer negatives


@pytest.mark.parametrize("hard", [0, 2])
@pytest.mark.parametrize("symmetric", [False, True])
def test_without_groups_it_is_the_librarys(hard, symmetric):
    features, _ = draw(4, hard=hard)
    model = Layer()
    ours = GroupedInfoNCE(model, temperature=TEMPERATURE, symmetric=symmetric)
    directions = ("query_to_doc", "doc_to_query")[: 1 + symmetric]
    theirs = MultipleNegativesRankingLoss(
        model, scale=1 / TEMPERATURE, directions=directions, partition_mode="per_direction"
    )
    mine, grad = gradients(lambda: ours(features, None), model)
    other, expected = gradients(lambda: theirs(features, None), model)
    assert mine == pytest.approx(other, rel=1e-12)
    torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_chunks_change_no_gradient(chunk, symmetric):
    features, groups = draw(5)
    model = Layer()
    whole = GroupedInfoNCE(model, temperature=TEMPERATURE, symmetric=symmetric)
    cut = GroupedInfoNCE(model, temperature=TEMPERATURE, symmetric=symmetric, chunk_rows=chunk)
    loss, grad = gradients(lambda: cut(features, groups), model)
    expected, expected_grad = gradients(lambda: whole(features, groups), model)
    assert loss == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [2, 3])
def test_dropout_is_replayed(chunk):
    """Both passes over a chunk drop the same: as the library's cached loss does, from one seed."""
    features, _ = draw(6)
    model = Layer(dropout=0.5)
    ours = GroupedInfoNCE(model, temperature=TEMPERATURE, chunk_rows=chunk)
    theirs = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=chunk)
    outcome = []
    for loss in (ours, theirs):
        torch.manual_seed(1)
        outcome.append(gradients(lambda loss=loss: loss(features, None), model))
    assert outcome[0][0] == pytest.approx(outcome[1][0], rel=1e-12)
    torch.testing.assert_close(outcome[0][1], outcome[1][1], rtol=1e-10, atol=1e-12)


def test_half_precision_vectors_are_scored_in_32_bits():
    features, groups = draw(7)
    loss = GroupedInfoNCE(Layer(), temperature=0.02)
    vectors = [[loss.model(part)["sentence_embedding"].detach().bfloat16()] for part in features]
    with torch.autocast("cpu", torch.bfloat16):
        total = loss.calculate_loss(vectors, groups)
    assert total.dtype == torch.float32
    exact = oracle([part.double().numpy() for (part,) in vectors], groups.numpy(), temperature=0.02)
    assert total.item() == pytest.approx(exact, rel=1e-5)


def test_a_static_models_batch_is_not_cut():
    with pytest.raises(InputError, match="chunk_rows is 4, but the model is static"):
        GroupedInfoNCE(packaged.static_student(8, 0), temperature=TEMPERATURE, chunk_rows=4)
    GroupedInfoNCE(vision.glyph_student(0), temperature=TEMPERATURE, chunk_rows=4)


def test_groups_of_another_shape_are_refused():
    features, groups = draw(8)
    loss = GroupedInfoNCE(Layer(), temperature=TEMPERATURE)
    with pytest.raises(ValueError, match=r"shape \(7, 2\), but vectors of 7 rows and 3 columns"):
        loss(features, groups[:, :2])


def rank_gradients(rank, world, *, symmetric, chunk):
    """What one process of several computes of its slice of the batch, in float32."""
    torch.manual_seed(0)
    model = Layer(dtype=torch.float32)
    features, groups = draw(9, rows=12)
    own = slice(rank * 12 // world, (rank + 1) * 12 // world)
    features = [{"input_ids": part["input_ids"][own].float()} for part in features]
    wrapped = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    loss = GroupedInfoNCE(
        wrapped,
        temperature=TEMPERATURE,
        gather=world > 1,
        symmetric=symmetric,
        chunk_rows=chunk,
    )
    total = loss(features, groups[own])
    total.backward()
    mean = total.detach().clone()
    if world > 1:
        torch.distributed.all_reduce(mean)
    return mean.item() / world, model.layer.weight.grad.flatten().tolist()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize(("symmetric", "chunk"), [(False, None), (True, None), (True, 2)])
def test_several_processes_have_the_gradient_of_one(world, symmetric, chunk):
    code = (
        "import torch; from tests.core import test_loss as t; "
        "torch.set_num_threads(1); torch.distributed.init_process_group('gloo'); "
        "import json; print(json.dumps(t.rank_gradients(torch.distributed.get_rank(), "
        f"{world}, symmetric={symmetric}, chunk={chunk}))); "
        "torch.distributed.destroy_process_group()"
    )
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **group, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    outcomes = [process.communicate(timeout=250) for process in running]
    loss, gradient = rank_gradients(0, 1, symmetric=symmetric, chunk=None)
    for out, err in outcomes:
        assert out, err
        total, theirs = json.loads(out)
        assert total == pytest.approx(loss, rel=1e-5)
        error = np.linalg.norm(np.subtract(theirs, gradient)) / np.linalg.norm(gradient)
        assert error < 1e-5
