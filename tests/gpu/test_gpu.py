"""What only a GPU shows: `pytest -m gpu tests/gpu` on a machine that has one."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from b3_core import neighbours, search, teacher
from b3_core.bench.neighbours import clustered_pairs, oracle
from b3_core.config import ComputeSpec, TeacherSpec, TrainSpec
from b3_core.evaluate import tiles
from b3_core.evaluate.retrieval import rank_of_positive
from b3_core.ray_session import RaySession
from tests import tiny
from tests.conftest import topic_table
from tests.core.test_architectures import DECODERS, INPUTS, MAKERS
from tests.core.test_resume import run as train
from tests.core.test_resume import student
from tests.core.test_train import SPEC, TEXTS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
WORDS = [text for pair in TEXTS for text in pair]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny.bert(WORDS, tmp_path_factory.mktemp("bert"), dropout=0.0)


@pytest.fixture
def without_gpu(monkeypatch):
    """Return a function that has searches and tiles stay on the CPU."""

    def hide():
        monkeypatch.setattr(search, "torch_sees_gpu", lambda: False)
        monkeypatch.setattr(tiles, "_torch_sees_gpu", lambda: False)

    return hide


@pytest.fixture
def searched(monkeypatch):
    """Note which search on which device was asked."""
    asked, plain = [], search.Torch.propose

    def propose(self, query_BD, candidates, row_B):
        asked.append((str(self.dtype), self.device.type))
        return plain(self, query_BD, candidates, row_B)

    monkeypatch.setattr(search.Torch, "propose", propose)
    monkeypatch.setattr(search, "_GPU_ROWS", 0)
    return asked


@pytest.mark.parametrize(("rows", "width"), [(30_000, 130), (6_000, 3_000)])
def test_ranks_are_those_of_the_cpu(rows, width, searched, without_gpu):
    pairs = clustered_pairs(rows, dim=384, seed=1)
    group_N = np.arange(rows, dtype=np.int32) // 3
    found = neighbours.rank(*pairs, group_N=group_N, width=width)
    assert ("torch.float16", "cuda") in searched
    without_gpu()
    on_cpu = neighbours.rank(*pairs, group_N=group_N, width=width)
    np.testing.assert_array_equal(found.neighbour_NM, on_cpu.neighbour_NM)
    np.testing.assert_array_equal(found.score_NM, on_cpu.score_NM)


def test_positives_that_do_not_stay_on_the_gpu_are_ranked_alike(monkeypatch, searched):
    pairs = clustered_pairs(20_000, dim=128, seed=2)
    alone_N = np.arange(20_000, dtype=np.int32)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    found = neighbours.rank(*pairs, group_N=alone_N, width=50, memory_mb=64)
    row_S = np.arange(0, 20_000, 97)
    np.testing.assert_array_equal(
        found.neighbour_NM[row_S], oracle(*pairs, row_S=row_S, k=50, own=False)
    )
    assert ("torch.float16", "cuda") in searched


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("allowed", [False, True])
def test_no_score_is_further_off_than_its_bound(dtype, allowed, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", allowed)
    query_ND, positive_ND = (
        each + 1e-3 * np.random.default_rng(0).standard_normal(each.shape, np.float32)
        for each in clustered_pairs(5_000, dim=1024, seed=3)
    )
    made = search.Torch(positive_ND, device="cuda", dtype=dtype, memory_mb=64)
    found = made.propose(query_ND[:500], 40, np.arange(500))
    exact_BN = query_ND[:500].astype(np.float64) @ positive_ND.T.astype(np.float64)
    off_BC = np.abs(found.score_BC - np.take_along_axis(exact_BN, found.row_BC, axis=1))
    assert (off_BC <= found.error_B[:, None]).all()
    np.put_along_axis(exact_BN, found.row_BC, -np.inf, axis=1)
    assert (exact_BN.max(axis=1) <= found.ceiling_B).all()


def test_ranks_of_an_evaluation_are_those_of_the_cpu(without_gpu):
    query_ND, corpus_ND = clustered_pairs(20_000, dim=256, seed=4)  # one in 50 is a tie
    group_C = np.arange(20_000, dtype=np.int32) // 2
    of = {"group_Q": group_C[:3_000], "group_C": group_C}
    found_Q = rank_of_positive(query_ND[:3_000], corpus_ND, **of)
    without_gpu()
    np.testing.assert_array_equal(found_Q, rank_of_positive(query_ND[:3_000], corpus_ND, **of))


@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_a_teachers_vectors_are_those_of_the_cpu(precision, near, bert):
    spec = TeacherSpec(model=str(bert), precision=precision)
    on_gpu = teacher.Teacher(spec)
    assert on_gpu.model.device.type == "cuda"
    texts = [WORDS[row % len(WORDS)] for row in range(600)]
    found_ND = on_gpu.encode(texts)
    expected_ND = teacher.Teacher(TeacherSpec(model=str(bert)), device="cpu").encode(texts)
    assert 1 - np.einsum("nd,nd->n", found_ND, expected_ND).min() < near
    np.testing.assert_array_equal(on_gpu.encode(texts[256:512]), found_ND[256:512])


@pytest.mark.parametrize("name", ["clip", "siglip2", "qwen2_vl", "qwen2_5_vl", "internvl"])
@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-4), ("bf16", 5e-2)])
def test_a_teacher_sees_on_the_gpu_what_it_sees_on_the_cpu(name, precision, near, tmp_path):
    spec = {"model": str(MAKERS[name](tmp_path / name))}
    spec |= {"pooling": "lasttoken"} if name in DECODERS else {}
    found_ND = teacher.Teacher(TeacherSpec(precision=precision, **spec)).encode(INPUTS)
    expected_ND = teacher.Teacher(TeacherSpec(**spec), device="cpu").encode(INPUTS)
    assert 1 - np.einsum("nd,nd->n", found_ND, expected_ND).min() < near


def test_a_static_student_embeds_on_the_cpu(tmp_path):
    train(SPEC, tmp_path / "student")
    encoder = teacher.Teacher(TeacherSpec(model=str(tmp_path / "student")))
    assert encoder.model.device.type == "cpu"
    assert encoder.encode(WORDS[:5]).shape == (5, SPEC.dim)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("chunk_rows", [None, 3])
def test_a_training_follows_that_of_the_cpu(precision, chunk_rows, bert, tmp_path, monkeypatch):
    spec = TrainSpec(
        student=str(bert), learning_rate=1e-3, precision=precision, chunk_rows=chunk_rows
    )
    on_gpu = train(spec, tmp_path / "gpu")
    again = train(spec, tmp_path / "again")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    expected = train(spec.model_copy(update={"precision": "fp32"}), tmp_path / "cpu")
    near = 1e-4 if precision == "fp32" else 5e-2
    np.testing.assert_allclose(on_gpu.loss, expected.loss, rtol=near)
    np.testing.assert_allclose(on_gpu.loss, again.loss, rtol=1e-3)
    assert {part.dtype for part in student(tmp_path / "gpu").values()} == {np.dtype("float32")}


class Sees:
    """An actor that says what its process may use."""

    def devices(self):
        return torch.cuda.device_count(), torch.zeros(1, device="cuda").device.type


class Counts:
    """An actor without a GPU."""

    def devices(self):
        return torch.cuda.device_count()


def test_actors_share_a_gpu():
    with RaySession(ComputeSpec(gpus_per_worker=0.5)) as session:
        pool = session.pool(Sees)
        assert pool.size == session.workers == 2 * torch.cuda.device_count()
        with ThreadPoolExecutor(pool.size) as threads:
            calls = [threads.submit(pool.call, "devices") for _ in range(2 * pool.size)]
            assert {call.result() for call in calls} == {(1, "cuda")}
        alone = session.pool(Counts, gpu=False)
        assert alone.call("devices") == 0
        assert session.call(torch.cuda.device_count, gpu=True) == 1
        assert session.call(torch.cuda.device_count, gpu=False) == 0


def test_workers_beyond_the_gpus_are_refused(b3, write_config):
    compute = {"gpus_per_worker": 1, "workers": 1, "train_workers": 32}
    config = write_config(train={"student": "minilm"}, compute=compute)
    done = b3("run", config, check=False)
    assert done.returncode == 2
    assert "32 x" in done.stderr and "do not fit" in done.stderr


@pytest.mark.parametrize(("share", "student_of"), [(1, "bert"), (0.5, "bert"), (1, "static")])
def test_a_run_by_flows_uses_the_gpu(share, student_of, b3, write_config, tmp_path):
    texts = [text for name in ("question", "answer") for text in topic_table(600)[name].to_pylist()]
    model = str(tiny.bert(texts, tmp_path / "own"))
    own = {"student": model, "precision": "bf16", "chunk_rows": 8}
    config = write_config(
        teacher={"model": model, "precision": "bf16"},
        train=own if student_of == "bert" else {"student": "static", "dim": 32},
        arms=["random", "b3"],
        compute={"gpus_per_worker": share, "shard_rows": 256},
    )
    outcome = json.loads(b3("run", config, "--json").stdout)
    assert [row["arm"] for row in outcome["arms"]] == ["random", "b3"]
    for uri in outcome["manifests"]:
        assert b3("verify", uri).stdout.startswith("sound: ")
    again = json.loads(b3("run", config, "--json").stdout)
    assert again["up_to_date"] and again["arms"] == outcome["arms"]
