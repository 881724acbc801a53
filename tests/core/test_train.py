"""Training sees the plan's rows, minimises InfoNCE, and comes out the same bit for bit.

A row is the pair ("the <word> q", "<the word spelt backwards> of p"): what a batch held can be read
off its tokens, and nothing but the training tells which positive belongs to which query.
"""

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from torch import nn
from transformers import get_linear_schedule_with_warmup

from b3_core import packaged, static, teacher, train
from b3_core.config import ComputeSpec, TrainSpec
from b3_core.errors import B3Error, InputError
from b3_core.student import build_student
from tests import tiny
from tests.conftest import free_port
from tests.core.test_sampler import make_plan, make_table

WORDS = [
    *("red", "blue", "green", "black", "white", "brown", "pink", "grey", "gold", "silver", "wood"),
    *("stone", "iron", "glass", "paper", "cotton", "lion", "horse", "sheep", "tiger", "eagle"),
    *("whale", "mouse", "snake", "north", "south", "east", "west", "spring", "summer", "winter"),
    "night",
]
OTHERS = [
    *("bread", "river", "train", "music", "table", "chair", "phone", "garden", "window", "school"),
    *("doctor", "bridge", "market", "letter", "engine", "forest", "island", "castle", "palace"),
    *("church", "valley", "desert", "ocean", "planet", "rocket", "camera", "guitar", "piano"),
    *("violin", "hammer", "needle", "button"),
]
# Every word is a token, and no text shares one with its positive: there is something to learn.
TEXTS = [(f"the {one} q", f"{other} of p") for one, other in zip(WORDS, OTHERS, strict=True)]
PAIRS = [make_table("a", TEXTS[:20]), make_table("b", TEXTS[20:])]
SPEC = TrainSpec(student="static", dim=16, learning_rate=1e-2)


def small_plan(epochs=2, size=4, seed=0):
    """Every row once an epoch; batches of the two tables mixed."""
    rows, datasets = [], []
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        parts = [rng.permutation(20).reshape(-1, size), rng.permutation(12).reshape(-1, size)]
        order = rng.permutation(sum(map(len, parts)))
        rows.append(np.concatenate(parts)[order])
        datasets.append(np.repeat([0, 1], [len(part) for part in parts])[order])
    return make_plan(
        np.concatenate(rows),
        np.concatenate(datasets),
        np.repeat(range(epochs), [len(part) for part in rows]),
    )


PLAN = small_plan()


pytestmark = pytest.mark.usefixtures("one_thread")


def weights(folder: Path) -> np.ndarray:
    return load_file(folder / "model.safetensors")["embedding.weight"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "model"
    told = []
    result = train.train_student(
        PAIRS, PLAN, SPEC, seed=5, output=output, progress=lambda *state: told.append(state)
    )
    return result, output, told


def test_the_result_counts(trained):
    result, _, told = trained
    assert (result.steps, result.examples_seen) == (16, 64)
    assert [step for step, _ in result.loss] == list(range(1, 17))
    assert told == [(step, 16) for step in range(1, 17)]
    assert result.seconds > 0


def test_a_long_run_keeps_a_sparse_curve(tmp_path):
    plan, told = small_plan(epochs=15), []
    result = train.train_student(
        PAIRS, plan, SPEC, seed=5, output=tmp_path, progress=lambda *state: told.append(state)
    )
    assert [step for step, _ in result.loss] == list(range(2, 121, 2))
    assert told[-1] == (120, 120)
    assert result.loss[-1][1] < 0.1 < 1 < result.loss[0][1]


def contrast(model) -> float:
    """How much nearer queries are to their own positives than to others, in cosine."""
    queries, positives = (
        model.encode(side, normalize_embeddings=True) for side in zip(*TEXTS, strict=True)
    )
    cosine = queries @ positives.T
    return float(cosine.diagonal().mean() - cosine.mean())


def test_a_saved_student_is_whole_and_nothing_else(trained):
    _, output, _ = trained
    assert sorted(file.name for file in output.iterdir()) == [
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "tokenizer.json",
    ]
    model = SentenceTransformer(str(output), device="cpu", local_files_only=True)
    np.testing.assert_array_equal(model[0].embedding.weight.detach().numpy(), weights(output))
    start = packaged.static_student(16, seed=5)
    assert contrast(model) > contrast(start) + 0.01  # sixteen steps: little, but the same always


def test_the_same_seed_gives_the_same_bits(trained, tmp_path):
    result, output, _ = trained
    torch.manual_seed(99)  # what was drawn before must not matter
    again = train.train_student(PAIRS, PLAN, SPEC, seed=5, output=tmp_path / "again")
    other = train.train_student(PAIRS, PLAN, SPEC, seed=6, output=tmp_path / "other")
    assert again.loss == result.loss
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        output / "model.safetensors"
    ).read_bytes()
    assert other.loss != result.loss
    assert not np.array_equal(weights(tmp_path / "other"), weights(output))


def test_global_states_are_put_back(tmp_path, monkeypatch):
    random.seed(1)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(3)
    expected = random.random(), np.random.random(), torch.rand(()).item()  # noqa: NPY002
    random.seed(1)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    train.train_student(PAIRS, PLAN, SPEC, seed=5, output=tmp_path)
    assert (random.random(), np.random.random(), torch.rand(()).item()) == expected  # noqa: NPY002
    assert told == [1, 7]


def test_what_a_model_draws_while_it_is_built_follows_from_the_seed():
    drawn = []
    for seed in (1, 1, 2):
        with train._seeded(seed):
            drawn.append((random.random(), np.random.random(), torch.rand(()).item()))  # noqa: NPY002
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[0], drawn[2], strict=True))


@pytest.mark.parametrize("student", ["static", pytest.param("minilm", marks=pytest.mark.slow)])
def test_it_neither_prints_nor_connects(tmp_path, capfd, monkeypatch, student):
    def connect(*address):
        raise AssertionError(f"connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    spec = TrainSpec(student=student, dim=16)
    train.train_student(PAIRS, make_plan([[0, 1]], [0], [0]), spec, seed=5, output=tmp_path)
    assert capfd.readouterr() == ("", "")


class Recorder(train.GroupedInfoNCE):
    """The loss, remembering the texts it was given."""

    seen: list[tuple[list[str], list[str]]] = []

    def forward(self, sentence_features, labels=None):
        self.seen.append(tuple(self.texts(side) for side in sentence_features))
        return super().forward(sentence_features, labels)

    def texts(self, side) -> list[str]:
        tokenizer = self.model.tokenizer
        if "offsets" in side:
            bags = np.split(side["input_ids"].numpy(), side["offsets"].numpy()[1:])
        else:
            bags = side["input_ids"].numpy()
        return [tokenizer.decode(bag, skip_special_tokens=True).strip() for bag in bags]


def plan_texts(plan) -> list[tuple[list[str], list[str]]]:
    batches = []
    for dataset, rows in zip(plan.dataset_S, plan.row_SB, strict=True):
        table = PAIRS[dataset]
        queries, positives = table.queries.to_pylist(), table.positives.to_pylist()
        batches.append(([queries[row] for row in rows], [positives[row] for row in rows]))
    return batches


@pytest.mark.parametrize(
    ("student", "batches"),
    [
        ("static", slice(0, 13)),
        pytest.param("minilm", slice(6, 9), marks=pytest.mark.slow),
    ],
)
def test_the_trainer_sees_the_plans_rows_in_the_plans_order(
    student, batches, tmp_path, monkeypatch
):
    # One epoch is shorter than the other, as one whose rows fill fewer whole batches is.
    plan = make_plan(PLAN.row_SB[batches], PLAN.dataset_S[batches], PLAN.epoch_S[batches])
    assert np.ptp(np.bincount(plan.epoch_S)) > 0
    monkeypatch.setattr(train, "GroupedInfoNCE", Recorder)
    monkeypatch.setattr(Recorder, "seen", [])
    spec = TrainSpec(student=student, dim=16)
    result = train.train_student(PAIRS, plan, spec, seed=5, output=tmp_path)
    assert result.steps == len(plan.row_SB)
    assert Recorder.seen == plan_texts(plan)


def info_nce(query_BD: np.ndarray, positive_BD: np.ndarray, temperature: float) -> float:
    """The mean of -log softmax_j(cos(q_i, p_j) / temperature) at j = i, in float64."""
    query_BD, positive_BD = (
        side.astype(np.float64) / np.linalg.norm(side.astype(np.float64), axis=1, keepdims=True)
        for side in (query_BD, positive_BD)
    )
    logit_BB = query_BD @ positive_BD.T / temperature
    return float(np.mean(np.log(np.exp(logit_BB).sum(axis=1)) - np.diag(logit_BB)))


@pytest.mark.parametrize(
    "changes", [{}, {"temperature": 0.5}, {"query_prompt": "find: ", "positive_prompt": "it is "}]
)
def test_the_first_loss_is_info_nce(changes, tmp_path):
    spec = SPEC.model_copy(update=changes)
    result = train.train_student(PAIRS, PLAN, spec, seed=5, output=tmp_path)
    queries, positives = plan_texts(PLAN)[0]
    model = packaged.static_student(16, seed=5)
    expected = info_nce(
        model.encode([spec.query_prompt + text for text in queries]),
        model.encode([spec.positive_prompt + text for text in positives]),
        spec.temperature,
    )
    assert result.loss[0][1] == pytest.approx(expected, rel=1e-5)


def test_slow_twin(trained):
    """The same training as a bare loop: torch's own bag, loss, optimizer and schedule."""
    result, output, _ = trained
    model = packaged.static_student(16, seed=5)
    bag = nn.EmbeddingBag.from_pretrained(model[0].embedding.weight.data.clone(), freeze=False)
    bag.sparse = True
    optimizer = torch.optim.SparseAdam(bag.parameters(), lr=1e-2)
    losses = []
    for step, texts in enumerate(plan_texts(PLAN)):
        # 16 steps, of which round(0.1 x 16) = 2 warm up.
        optimizer.param_groups[0]["lr"] = 1e-2 * (step / 2 if step < 2 else (16 - step) / 14)
        query_BD, positive_BD = (
            nn.functional.normalize(bag(ids["input_ids"], ids["offsets"]))
            for ids in (model[0].preprocess(side) for side in texts)
        )
        loss = nn.functional.cross_entropy(query_BD @ positive_BD.T / 0.05, torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [loss for _, loss in result.loss] == pytest.approx(losses, rel=1e-4)
    np.testing.assert_allclose(weights(output), bag.weight.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("changes", [{"temperature": 1e-45}, {"learning_rate": 1e38}])
def test_a_loss_that_is_no_number_stops_the_run(changes, tmp_path):
    spec = SPEC.model_copy(update=changes)
    with pytest.raises(B3Error, match=r"the loss is nan in batch \d+ of the plan; expected"):
        train.train_student(PAIRS, PLAN, spec, seed=5, output=tmp_path / "model")
    assert not (tmp_path / "model" / "model.safetensors").exists()


def test_texts_are_cut_and_prompts_are_kept(tmp_path):
    spec = TrainSpec(
        student="static", dim=16, max_length=3, query_prompt="q: ", positive_prompt="p: "
    )
    train.train_student(PAIRS, PLAN, spec, seed=5, output=tmp_path)
    model = SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True)
    assert model.prompts == {"query": "q: ", "document": "p: "}
    np.testing.assert_array_equal(*model.encode(["open file now", "open file now or later"]))


@pytest.mark.parametrize(
    "prompts", [[("q: ", "p: ")] * 2, [("q: ", ""), ("", "p: ")]], ids=["alike", "not alike"]
)
def test_prompts_of_datasets_are_saved_with_the_student(tmp_path, prompts):
    spec = TrainSpec(student="static", dim=16)
    train.train_student(PAIRS, PLAN, spec, seed=5, output=tmp_path, prompts=prompts)
    found = SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True).prompts
    if len(set(prompts)) == 1:
        assert found == {"query": "q: ", "document": "p: "}
        return
    for part, (query, positive) in zip(PAIRS, prompts, strict=True):
        assert found[f"{part.dataset}-query"] == query
        assert found[f"{part.dataset}-document"] == positive
    assert found["query"] == found["document"] == ""


@pytest.mark.slow
def test_a_transformers_loss_follows_from_seed_and_precision(tmp_path):
    plan, spec = make_plan(PLAN.row_SB[:1], PLAN.dataset_S[:1], [0]), TrainSpec(student="minilm")

    def loss(seed: int, spec: TrainSpec) -> float:
        return train.train_student(PAIRS, plan, spec, seed=seed, output=tmp_path).loss[0][1]

    first = loss(5, spec)
    assert loss(5, spec) == first
    assert loss(6, spec) != first  # other dropout
    bf16 = loss(5, spec.model_copy(update={"precision": "bf16"}))
    assert bf16 != first
    assert bf16 == pytest.approx(first, rel=0.05)


@pytest.mark.slow  # forks, which no one should do beside the threads of other tests
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_texts_tokenised_by_other_processes_train_the_same(tmp_path, monkeypatch):
    words = [text for pair in TEXTS for text in pair]
    spec = TrainSpec(student=str(tiny.bert(words, tmp_path / "bert")))  # with dropout
    plain, asked, students = train.PlanTrainer.get_train_dataloader, [], []

    def loader(trainer):
        asked.append(trainer.args.dataloader_num_workers)
        return plain(trainer)

    monkeypatch.setattr(train.PlanTrainer, "get_train_dataloader", loader)
    for workers in (0, 2):
        output = tmp_path / str(workers)
        compute = ComputeSpec(loader_workers=workers)
        train.train_student(PAIRS, PLAN, spec, seed=5, output=output, compute=compute)
        students.append((output / "model.safetensors").read_bytes())
    assert asked == [0, 2]
    assert students[0] == students[1]


def test_a_static_student_is_exact_in_any_precision(trained, tmp_path):
    spec = SPEC.model_copy(update={"precision": "bf16"})
    result = train.train_student(PAIRS, PLAN, spec, seed=5, output=tmp_path)
    assert result.loss == trained[0].loss


def test_a_static_folder_is_trained_on(trained, tmp_path):
    result, output, _ = trained
    spec = TrainSpec(student=str(output))
    further = train.train_student(PAIRS, PLAN, spec, seed=5, output=tmp_path)
    assert further.loss[0][1] < result.loss[0][1]
    assert further.loss[-1][1] < result.loss[-1][1]


def without_dropout(*args, **settings):
    model = teacher_load(*args, **settings)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


teacher_load = teacher.load_model


@pytest.mark.slow
def test_a_cached_loss_trains_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "load_model", without_dropout)
    monkeypatch.setattr(train, "_CACHED_ROWS", 3)
    plan = make_plan(PLAN.row_SB[:2], PLAN.dataset_S[:2], PLAN.epoch_S[:2])
    spec = TrainSpec(student="minilm", learning_rate=1e-4, warmup_ratio=0)
    outcome = {}
    for name, threshold in {"plain": 4, "cached": 3}.items():
        monkeypatch.setattr(train, "_CACHED_FROM", threshold)
        result = train.train_student(PAIRS, plan, spec, seed=5, output=tmp_path / name)
        outcome[name] = [loss for _, loss in result.loss]
    assert outcome["cached"] == pytest.approx(outcome["plain"], rel=1e-3)
    start = load_file(packaged.minilm_folder() / "model.safetensors")
    plain, cached = (load_file(tmp_path / name / "model.safetensors") for name in outcome)
    key = "encoder.layer.5.output.dense.weight"
    assert np.abs(plain[key] - start[key]).max() > 1e-5  # it did train
    np.testing.assert_allclose(cached[key], plain[key], atol=2e-5)


def test_large_batches_are_cached_but_not_those_of_a_static_student():
    minilm, student = teacher.load_model("minilm", device="cpu"), packaged.static_student(8, seed=0)
    chunks = {
        (model is student, rows): train._loss(model, SPEC, rows=rows, gather=False).mini_batch_size
        for model in (minilm, student)
        for rows in (256, 257)
    }
    assert chunks == {(False, 256): None, (False, 257): 64, (True, 256): None, (True, 257): None}
    asked = train._loss(minilm, SPEC.model_copy(update={"chunk_rows": 8}), rows=16, gather=False)
    assert asked.mini_batch_size == 8
    whole = train._loss(minilm, SPEC.model_copy(update={"chunk_rows": 512}), rows=512, gather=False)
    assert whole.mini_batch_size is None  # nothing to bound: one pass instead of two


def test_a_folders_own_prompts_are_dropped(tmp_path):
    model = packaged.static_student(8, seed=0)
    model.prompts, model.default_prompt_name = {"query": "old: "}, "query"
    model.save_pretrained(str(tmp_path), create_model_card=False)
    student = build_student(TrainSpec(student=str(tmp_path)), seed=0)
    assert student.prompts == {"query": "", "document": ""}
    assert student.default_prompt_name is None


def test_a_static_student_over_nccl_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    with pytest.raises(InputError, match=r"set compute.gpus_per_worker: 0"):
        train._check_backend()


class TestStatic:
    @settings(deadline=None)
    @given(st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=5))
    def test_sparse_mean_is_the_bag_it_replaces(self, bags):
        bag = nn.EmbeddingBag(10, 3, sparse=True)
        mean = static.SparseMean.of(nn.EmbeddingBag.from_pretrained(bag.weight.data.clone()))
        ids = torch.tensor([token for tokens in bags for token in tokens], dtype=torch.int64)
        offsets = torch.tensor(np.cumsum([0, *map(len, bags[:-1])]))
        factor = torch.linspace(-1, 1, 3 * len(bags)).reshape(-1, 3)
        outputs = [module(ids, offsets) for module in (bag, mean)]
        for output in outputs:
            (output * factor).sum().backward()
        torch.testing.assert_close(outputs[1], outputs[0])
        torch.testing.assert_close(mean.weight.grad.to_dense(), bag.weight.grad.to_dense())
        assert mean.weight.grad.is_sparse
        assert mean.weight.grad._nnz() == len(set(ids.tolist()))

    def test_tokens_are_those_of_the_model_itself(self):
        module = packaged.static_student(8, seed=0)[0]
        texts = ["open the file", "", "naïve façade 東京", "x" * 200]
        columns = [pa.chunked_array([texts[:3]]), pa.chunked_array([texts[3:], texts[:1]])]
        table = static.TokenTable.of(module.tokenizer, columns, "find: ")
        ids, offsets = table.bags([3, 1, 0, 4])
        expected = module.preprocess([texts[3], texts[1], texts[0], texts[0]], prompt="find: ")
        torch.testing.assert_close(ids, expected["input_ids"])
        torch.testing.assert_close(offsets, expected["offsets"])

    def test_what_is_static(self):
        assert static.is_static(packaged.static_student(8, seed=0))
        assert not static.is_static(teacher.load_model("minilm", device="cpu"))
        embedding = packaged.static_student(8, seed=0)[0]
        assert static.is_static(SentenceTransformer(modules=[embedding, Normalize()], device="cpu"))
        # The layer's gradients are dense, which the sparse optimizer cannot take.
        assert not static.is_static(
            SentenceTransformer(modules=[embedding, Dense(8, 4)], device="cpu")
        )


def process(student: str, output: Path, **environment: str) -> subprocess.Popen:
    code = (
        "from pathlib import Path; from tests.core import test_train as t; "
        f"r = t.train.train_student(t.PAIRS, t.small_plan(1), "
        f"t.TrainSpec(student={student!r}, dim=16), seed=5, output=Path({str(output)!r})); "
        "print(r.steps, r.examples_seen, *(round(loss, 3) for _, loss in r.loss))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("student", ["static", "minilm"])
def test_two_processes_train_as_one(student, tmp_path):
    port = str(free_port())
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    pair = [
        process(student, tmp_path / "two", **group, RANK=rank, LOCAL_RANK=rank)
        for rank in ("0", "1")
    ]
    two = [running.communicate(timeout=200) for running in pair]
    one = process(student, tmp_path / "one").communicate(timeout=200)
    assert two[0][0] == two[1][0] != "", two
    if student == "static":  # dropout differs between one process and two
        assert two[0][0] == one[0]
        np.testing.assert_allclose(weights(tmp_path / "two"), weights(tmp_path / "one"), atol=1e-3)
    assert two[0][0].startswith("8 32 ")
    assert "DISTRIBUTED" not in two[0][1]  # transformers' warning that each trains alone


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.1), (7, 0.5), (30, 0.0)])
def test_the_rate_is_the_librarys_linear_schedule_and_goes_on_where_it_was(steps, warmup):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    whole = get_linear_schedule_with_warmup(optimizer, round(warmup * steps), steps)
    factors = [whole.lr_lambdas[0](step) for step in range(steps)]
    ours = train._schedule(steps, warmup, (0.0, 1.0))
    assert [ours(step) for step in range(steps)] == factors
    halves = [
        [train._schedule(steps, warmup, span)(step) for step in range(steps)]
        for span in ((0.0, 0.5), (0.5, 1.0))
    ]
    twice = train._schedule(2 * steps, warmup, (0.0, 1.0))
    assert sum(halves, []) == [twice(step) for step in range(2 * steps)]


def test_training_goes_on_from_a_student(trained, tmp_path):
    result, before, _ = trained
    again = build_student(SPEC, seed=6, initial=before)
    assert np.array_equal(again[0].embedding.weight.detach().numpy(), weights(before))
    output = tmp_path / "model"
    more = train.train_student(
        PAIRS, PLAN, SPEC, seed=5, output=output, initial=before, span=(0.5, 1.0)
    )
    assert more.loss[0][1] < result.loss[0][1]
    assert not np.array_equal(weights(output), weights(before))
