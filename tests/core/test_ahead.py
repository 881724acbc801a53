"""What cannot go well is said before the work begins."""

import pytest

from b3_core.ahead import check_benchmarks, check_student, check_teacher
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
from b3_core.errors import InputError

PICTURES = DatasetSpec(name="icons", uri="/x", query_image="image", positive="name")
TEXTS = DatasetSpec(name="faq", uri="/x", query="q", positive="a")


def spec(*datasets, **sections):
    return PipelineSpec(datasets=datasets, **sections)


@pytest.mark.parametrize("model", ["static", "minilm"])
def test_a_teacher_of_texts_is_refused_for_pictures_that_it_would_read(model):
    with pytest.raises(InputError, match=f"teacher {model} reads texts only, but dataset icons"):
        check_teacher(spec(TEXTS, PICTURES, teacher=TeacherSpec(model=model)))
    check_teacher(spec(PICTURES, teacher=TeacherSpec(model=model, reads="positive")))
    check_teacher(spec(TEXTS, teacher=TeacherSpec(model=model)))
    check_teacher(spec(PICTURES, teacher=TeacherSpec(model="/models/clip")))


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
        ({"compute": {"train_workers": 2, "gpus_per_worker": 1}}, "tokens trains on the CPU"),
        ({"compute": {"report_to": ("mlflow",)}}, "compute.report_to needs mlflow"),
    ],
)
def test_a_training_that_cannot_be_is_refused(sections, message):
    with pytest.raises(InputError, match=message):
        check_student(spec(TEXTS, **sections))


def test_a_training_that_can_be_is_not():
    two = ComputeSpec(train_workers=2)
    check_student(
        spec(TEXTS, compute=two, train=TrainSpec(student="/models/bert", lora=LoraSpec()))
    )


def test_a_benchmark_without_its_folder_is_refused(tmp_path):
    there = BenchmarkSpec(name="coco", folder=str(tmp_path))
    check_benchmarks(spec(TEXTS, evaluate=EvalSpec(benchmarks=(there,))))
    gone = there.model_copy(update={"folder": str(tmp_path / "gone")})
    with pytest.raises(InputError, match="benchmark coco has no folder"):
        check_benchmarks(spec(TEXTS, evaluate=EvalSpec(benchmarks=(gone,))))
