"""What a CONFIG asks for and cannot have, said before hours of work instead of after them."""

from b3_core import benchmarks
from b3_core.config import PipelineSpec
from b3_core.errors import InputError

#: Packaged models, which read texts alone.
_READ_TEXTS = frozenset({"static", "tokens", "minilm"})


def check_teacher(spec: PipelineSpec) -> None:
    """Refuse a teacher that does not read the media of a dataset.

    Raises
    ------
    InputError
        It is a packaged one of texts, and a side that it reads has images or videos.
    """
    read = ("positive",) if spec.teacher.reads == "positive" else ("query", "positive")
    for dataset in spec.datasets:
        if spec.teacher.model in _READ_TEXTS and set(read) & dataset.media_columns.keys():
            raise InputError(
                f"teacher {spec.teacher.model} reads texts only, but dataset {dataset.name} has "
                "images or videos",
                expected="a model of images and texts",
                remedy="name one in teacher.model; or, where positives are texts, set "
                "teacher.reads: positive",
            )


def check_student(spec: PipelineSpec) -> None:
    """Refuse a student that does not read the media of a dataset.

    Raises
    ------
    InputError
        It is a packaged one of texts, and a dataset has images or videos.
    """
    for dataset in spec.datasets:
        if spec.train.student in _READ_TEXTS and dataset.media_columns:
            raise InputError(
                f"student {spec.train.student} reads texts only, but dataset {dataset.name} has "
                "images or videos",
                expected="a model of images and texts",
                remedy="name one in train.student",
            )


def check_benchmarks(spec: PipelineSpec) -> None:
    """Refuse benchmarks whose folder or tasks are not there.

    Raises
    ------
    InputError
        The first that is not.
    """
    for each in spec.evaluate.benchmarks:
        benchmarks.asked(each)
