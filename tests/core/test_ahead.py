"""What cannot go well is said before the work begins."""

import contextlib
import sys

import pytest
import torch
from huggingface_hub import constants as hub

from b3_core.ahead import check_benchmarks, check_student, check_teacher, check_windows
from b3_core.config import (
    BenchmarkSpec,
    ComputeSpec,
    DatasetSpec,
    EvalSpec,
    LoraSpec,
    PipelineSpec,
    TeacherSpec,
    TrainSpec,
)
from b3_core.dataset_stage import Pairs, PairsRef
from b3_core.errors import InputError
from b3_core.packaged import minilm_folder
from b3_core.plan import Plan
from b3_core.store import ArtifactStore
from b3_core.teacher import load_model

PICTURES = DatasetSpec(name="icons", uri="/x", query_image="image", positive="name")
TEXTS = DatasetSpec(name="faq", uri="/x", query="q", positive="a")
MODEL = str(minilm_folder())


def spec(*datasets, **sections):
    return PipelineSpec(datasets=datasets, **sections)


@pytest.mark.parametrize("model", ["static", "minilm"])
def test_a_teacher_of_texts_is_refused_for_pictures_that_it_would_read(model):
    with pytest.raises(InputError, match=f"teacher {model} reads texts only, but dataset icons"):
        check_teacher(spec(TEXTS, PICTURES, teacher=TeacherSpec(model=model)))
    check_teacher(spec(PICTURES, teacher=TeacherSpec(model=model, reads="positive")))
    check_teacher(spec(TEXTS, teacher=TeacherSpec(model=model)))
    check_teacher(spec(PICTURES, teacher=TeacherSpec(model=MODEL)))


def test_a_cutoff_that_leaves_no_window_is_refused_for_arms_that_mine():
    mined = spec(TEXTS, mining={"p": 99, "m": 10}, arms=("random", "b3"))
    check_windows(mined, {"faq": 101})  # of 100 ranks each row keeps the last
    with pytest.raises(InputError, match=r"p = 99 leaves no window in the 100 .* faq \(arm b3\)"):
        check_windows(mined, {"faq": 100})
    drawn = spec(TEXTS, mining={"p": 99}, arms=("random", "same-dataset"))
    check_windows(drawn, {"faq": 100})
    labelled = TEXTS.model_copy(update={"task": "classification"})
    check_windows(spec(labelled, mining={"p": 99}), {"faq": 100})
    with pytest.raises(InputError, match=r"mining.p = 70 leaves no window"):  # vqa's default
        check_windows(spec(TEXTS.model_copy(update={"task": "vqa"})), {"faq": 64})


def test_a_student_of_texts_is_refused_for_pictures():
    with pytest.raises(InputError, match="student tokens reads texts only, but dataset icons"):
        check_student(spec(PICTURES))
    check_student(spec(PICTURES, train=TrainSpec(student="glyphs")))
    check_student(spec(TEXTS))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"compute": {"train_workers": 3}}, "batches of 64 rows .*train_workers: 3"),
        ({"train": {"lora": {}}}, "student tokens has no layers to adapt"),
        ({"compute": {"report_to": ("mlflow",)}}, "compute.report_to needs mlflow"),
    ],
)
def test_a_training_that_cannot_be_is_refused(sections, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as if it were not installed
    with pytest.raises(InputError, match=message):
        check_student(spec(TEXTS, **sections))


def test_a_training_that_can_be_is_not():
    two = ComputeSpec(train_workers=2)
    check_student(spec(TEXTS, compute=two, train=TrainSpec(student=MODEL, lora=LoraSpec())))


@pytest.mark.parametrize(
    ("trainers", "share", "gpus", "fit"),
    [(4, 1, 4, True), (4, 1, 2, False), (1, 0.5, 1, True), (2, 2, 3, False), (1, 1, 0, False)],
)
def test_trainers_without_their_gpus_are_refused(trainers, share, gpus, fit, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    compute = ComputeSpec(train_workers=trainers, gpus_per_worker=share)
    asked = spec(TEXTS, compute=compute, train=TrainSpec(student=MODEL))
    said = rf"{trainers} x .* = {share:g} do not fit this machine's GPUs: {gpus}; "
    with contextlib.nullcontext() if fit else pytest.raises(InputError, match=said):
        check_student(asked)
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # where nodes may come
    check_student(asked)


@pytest.mark.parametrize("address", [None, "auto"])
def test_trainers_that_would_share_a_gpu_are_refused(address, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    compute = ComputeSpec(train_workers=2, gpus_per_worker=0.5)
    said = "train_workers: 2 with compute.gpus_per_worker: 0.5 would .*gpus_per_worker: 1 .0 is"
    with pytest.raises(InputError, match=said):
        check_student(spec(TEXTS, compute=compute, train=TrainSpec(student=MODEL)))


@pytest.mark.parametrize("student", ["tokens", "static", "glyphs"])
@pytest.mark.parametrize(("trainers", "share"), [(1, 1), (2, 1), (2, 0.5)])
def test_a_student_that_trains_on_the_cpu_needs_no_gpu(student, trainers, share, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    compute = ComputeSpec(train_workers=trainers, gpus_per_worker=share)
    check_student(spec(TEXTS, compute=compute, train=TrainSpec(student=student)))


def test_torch_is_imported_only_to_count_gpus(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    check_student(spec(TEXTS, compute=ComputeSpec(), train=TrainSpec(student=MODEL)))


HUB = {"revision": "0" * 40}


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("check", "sections"),
    [
        (check_teacher, {"teacher": TeacherSpec(model="org/model", **HUB)}),
        (check_student, {"train": TrainSpec(student="org/model", **HUB)}),
    ],
)
def test_a_model_of_the_hub_that_cannot_be_had_is_refused(
    check, sections, offline, dataset, tmp_path, monkeypatch
):
    faq = DatasetSpec(name="faq", uri=str(dataset), query="question", positive="answer")
    store = ArtifactStore(str(tmp_path / "store"))
    asked = spec(faq, store={"root": store.root}, **sections)
    said = r"model 'org/model' is neither a folder nor.*in the local cache.*HF_HUB_OFFLINE=0 in"
    with pytest.raises(InputError, match=said):
        check(asked)
    ref = PairsRef.of(faq, Pairs.of(faq, asked.evaluate).run(store))
    with pytest.raises(InputError, match=said):  # what is to be made is known now
        check(asked)
    plan = Plan.of(asked, [ref], store)
    for stage in (*plan.legs[0].vectors[0].shards, *plan.students):
        with store.draft(stage.address, lineage=stage.inputs, settings=stage.settings):
            pass
    check(asked)  # all that it is for is there

    empty = spec(faq, store={"root": str(tmp_path / "empty")}, **sections)
    with pytest.raises(InputError, match=said):
        check(empty)
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # its workers have caches of their own
    check(empty)
    monkeypatch.delenv("RAY_ADDRESS")
    (offline / "models--org--model" / "snapshots" / HUB["revision"]).mkdir(parents=True)
    check(empty)


def test_a_model_that_cannot_be_had_is_an_error_of_input_where_it_is_loaded(offline):
    with pytest.raises(InputError, match="'org/model' is neither a folder nor.*HF_HUB_OFFLINE=0"):
        load_model("org/model", **HUB)


def test_a_benchmark_without_its_folder_is_refused(tmp_path):
    there = BenchmarkSpec(name="coco", folder=str(tmp_path))
    check_benchmarks(spec(TEXTS, evaluate=EvalSpec(benchmarks=(there,))))
    gone = there.model_copy(update={"folder": str(tmp_path / "gone")})
    with pytest.raises(InputError, match="benchmark coco has no folder"):
        check_benchmarks(spec(TEXTS, evaluate=EvalSpec(benchmarks=(gone,))))
