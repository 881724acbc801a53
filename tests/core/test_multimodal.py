"""Images and videos through real architectures: what is encoded, and what is trained on."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from b3_core.batches import BatchPlan
from b3_core.config import ComputeSpec, LoraSpec, TeacherSpec, TrainSpec
from b3_core.errors import InputError
from b3_core.inputs import MEDIUM, NO_MEDIUM, Packer, Shelf, Shelves, media_digest
from b3_core.pairs import MEDIA, SCHEMA, PairTable
from b3_core.teacher import Teacher
from b3_core.train import train_student
from tests import tiny
from tests.media import clip, png

ROWS = 8
WORDS = ["red", "green", "blue", "dark", "light", "grey", "teal", "pink"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "clip": tiny.clip(WORDS, folder / "clip"),
        "siglip": tiny.siglip(WORDS, folder / "siglip"),
        "siglip2": tiny.siglip2(folder / "siglip2"),
        "vlm": tiny.qwen2_vl(folder / "vlm"),
        "qwen2_5": tiny.qwen2_5_vl(folder / "qwen2_5"),
        "internvl": tiny.internvl(folder / "internvl"),
        "bert": tiny.bert(WORDS, folder / "bert"),
    }


def picture(row: int) -> bytes:
    return png((30 * row, 255 - 30 * row, 20 * row), (20, 28))


def pairs(folder: Path, *, query_text: bool) -> tuple[PairTable, Shelf]:
    """Rows whose queries are pictures, of which the last is a clip; and texts."""
    packer = Packer(folder / "media.bin")
    media = []
    for row in range(ROWS):
        body = clip(5, (32, 32)) if row == ROWS - 1 else picture(row)
        start, size = packer.add(body)
        kind = "video" if row == ROWS - 1 else "image"
        media.append(
            {"kind": kind, "file": "", "start": start, "size": size, "digest": media_digest(body)}
        )
    packer.close()
    table = pa.table(
        {
            "row_id": range(ROWS),
            "key": [f"{row:032x}" for row in range(ROWS)],
            "query": [f"what is {row}" if query_text else "" for row in range(ROWS)],
            "positive": WORDS,
            "group": pa.array(range(ROWS), pa.int32()),
            "query_medium": pa.array(media, MEDIUM),
            "positive_medium": pa.array([NO_MEDIUM] * ROWS, MEDIUM),
        },
        schema=pa.schema([*SCHEMA, *MEDIA]),
    )
    return PairTable("pictures", table), Shelf(None, folder / "media.bin")


def test_a_vision_language_model_reads_texts_pictures_and_clips_in_one_dataset(
    tmp_path: Path, models: dict[str, Path]
) -> None:
    table, shelf = pairs(tmp_path, query_text=True)
    teacher = Teacher(TeacherSpec(model=str(models["vlm"])))
    query_ND = teacher.encode(table.inputs("query", shelf))
    assert query_ND.shape == (ROWS, 16)
    assert np.abs(query_ND - query_ND[0]).max(axis=1)[1:].min() > 1e-4  # none is read as another
    prompted_ND = teacher.encode(table.inputs("query", shelf), prompt="Find: ")
    assert np.abs(query_ND - prompted_ND).max() > 1e-3
    positive_ND = teacher.encode(table.inputs("positive", shelf))
    alone_ND = teacher.encode(WORDS)  # plain texts of a dataset without media
    np.testing.assert_array_equal(positive_ND, alone_ND)


def test_rows_of_several_datasets_have_each_its_own_media(tmp_path: Path) -> None:
    """As batches have that are drawn across datasets: of the second a folder, of the third none."""
    table, shelf = pairs(tmp_path, query_text=True)
    (tmp_path / "own").mkdir()
    body = png((1, 2, 3), (10, 10))
    (tmp_path / "own" / "a.png").write_bytes(body)
    named = {
        **{"kind": "image", "file": "a.png", "start": 0, "size": len(body)},
        "digest": media_digest(body),
    }
    shelves = Shelves([shelf, Shelf(str(tmp_path / "own"), None), None], [ROWS, 2, 4])
    packed = table.table["query_medium"][3].as_py()
    media = [named, NO_MEDIUM, packed]
    found = shelves.compose(["x", "y", "z"], media, np.array([ROWS + 1, ROWS + 3, 3]))
    assert [sorted(item) for item in found] == [["image", "text"], ["text"], ["image", "text"]]
    assert [found[0]["image"].getpixel((0, 0)), found[2]["image"].getpixel((0, 0))] == [
        (1, 2, 3),
        (90, 165, 60),
    ]


def test_clip_embeds_parts_and_averages_them(tmp_path: Path, models: dict[str, Path]) -> None:
    table, shelf = pairs(tmp_path, query_text=True)
    teacher = Teacher(TeacherSpec(model=str(models["clip"])))
    query_ND = teacher.encode(table.inputs("query", shelf))
    text_ND = teacher.encode([{"text": text} for text in table.queries.to_pylist()])
    images = [item["image"] for item in table.inputs("query", shelf)[:]]
    image_ND = teacher.encode([{"image": image} for image in images[:-1]])
    frame_FD = teacher.encode([{"image": frame} for frame in images[-1]])
    frames_D = frame_FD.mean(axis=0) / np.linalg.norm(frame_FD.mean(axis=0))
    expected_ND = text_ND + np.vstack([image_ND, frames_D])
    expected_ND /= np.linalg.norm(expected_ND, axis=1, keepdims=True)
    np.testing.assert_allclose(query_ND, expected_ND, atol=1e-6)


@pytest.mark.parametrize("model", ["clip", "vlm"])
def test_texts_that_look_like_paths_are_texts(
    models: dict[str, Path], model: str, tmp_path: Path
) -> None:
    there = tmp_path / "picture.png"
    there.write_bytes(picture(0))
    teacher = Teacher(TeacherSpec(model=str(models[model])))
    image_D = teacher.encode([{"image": Image.open(there)}])[0]
    for text in ("/etc/hostname.png", "http://127.0.0.1:9/a.png", "file:///a.mp4"):
        as_text, path_D = teacher.encode([text, str(there)])
        assert np.isfinite(as_text).all()
        assert np.abs(path_D - image_D).max() > 1e-3


def test_a_model_of_texts_refuses_pictures(tmp_path: Path, models: dict[str, Path]) -> None:
    table, shelf = pairs(tmp_path, query_text=False)
    for model in ("static", str(models["bert"])):
        teacher = Teacher(TeacherSpec(model=model))
        with pytest.raises(InputError, match=r"reads texts only.*teacher.reads: positive"):
            teacher.encode(table.inputs("query", shelf))
        assert len(teacher.encode(table.inputs("positive", shelf))) == ROWS


def plan_of(rows_SB: list[list[int]]) -> BatchPlan:
    row_SB = np.array(rows_SB, np.int32)
    none_SB = np.zeros(row_SB.shape, np.int16)
    community_SB, left_out = np.full_like(row_SB, -1), np.zeros((0, 3), np.int32)
    return BatchPlan(row_SB, none_SB, none_SB[:, 0], community_SB, left_out)


PLAN = plan_of([[0, 1, 2, 3], [4, 5, 6, 7], [7, 0, 6, 1]])


LORA = LoraSpec(r=2)
ALL_STUDENTS = [  # model, settings, whether it stands for its family in the fast tests
    ("clip", {"query_text": False}, True),
    ("clip", {"query_text": False, "symmetric": True}, False),
    ("siglip", {"query_text": False, "symmetric": True}, False),
    ("siglip", {"query_text": False, "lora": LORA, "chunk_rows": 3}, False),
    ("siglip2", {"query_text": False, "lora": LORA, "chunk_rows": 3}, True),
    ("vlm", {"lora": LoraSpec(r=2, targets=("q_proj", "v_proj")), "chunk_rows": 3}, False),
    ("vlm", {"precision": "bf16", "lora": LORA, "chunk_rows": 2}, True),
    ("vlm", {"chunk_rows": 3}, False),
    ("qwen2_5", {"lora": LORA, "chunk_rows": 3}, False),
    ("qwen2_5", {"precision": "bf16", "lora": LORA, "chunk_rows": 2}, False),
    ("internvl", {"pooling": "lasttoken", "lora": LORA, "chunk_rows": 3}, True),
    ("internvl", {"precision": "bf16", "pooling": "lasttoken", "lora": LORA}, False),
]


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        pytest.param(model, settings, marks=[] if stands else pytest.mark.slow)
        for model, settings, stands in ALL_STUDENTS
    ],
)
def test_students_of_pictures_are_trained(
    tmp_path: Path, models: dict[str, Path], model: str, settings: dict
) -> None:
    # A model of either kind is not trained on a column of which some rows are clips, or have texts.
    settings = dict(settings)
    table, shelf = pairs(tmp_path, query_text=settings.pop("query_text", True))
    if model in ("clip", "siglip", "siglip2"):
        table = PairTable("pictures", table.table.slice(0, 7))
        plan = plan_of([[0, 1, 2, 3], [3, 4, 5, 6]])
    else:
        plan = PLAN
    spec = TrainSpec(student=str(models[model]), learning_rate=1e-2, frames=2, **settings)
    result = train_student(
        [table], plan, spec, seed=0, output=tmp_path / "student", shelf_of=[shelf]
    )
    assert result.steps == len(plan.row_SB)
    assert all(np.isfinite(loss) for _, loss in result.loss)
    before, after = (
        Teacher(TeacherSpec(model=str(folder))) for folder in (models[model], tmp_path / "student")
    )
    inputs = table.inputs("query", shelf)
    assert np.abs(before.encode(inputs) - after.encode(inputs)).max() > 1e-3


@pytest.mark.parametrize(
    "model", ["vlm", *(pytest.param(m, marks=pytest.mark.slow) for m in ("qwen2_5", "internvl"))]
)
def test_cached_gradients_of_pictures_are_those_of_one_pass(
    tmp_path: Path, models: dict[str, Path], model: str
) -> None:
    table, shelf = pairs(tmp_path, query_text=True)
    weights = []
    for chunk_rows in (None, 3):
        spec = TrainSpec(student=str(models[model]), learning_rate=1e-3, chunk_rows=chunk_rows)
        output = tmp_path / f"student-{chunk_rows}"
        train_student([table], PLAN, spec, seed=0, output=output, shelf_of=[shelf])
        weights.append(Teacher(TeacherSpec(model=str(output))).encode(table.inputs("query", shelf)))
    np.testing.assert_allclose(weights[0], weights[1], atol=1e-5)


@pytest.mark.slow  # forks, which no one should do beside the threads of other tests
def test_pictures_decoded_by_other_processes_are_the_same(
    one_thread: None, tmp_path: Path, models: dict[str, Path]
) -> None:
    table, shelf = pairs(tmp_path, query_text=True)
    spec = TrainSpec(student=str(models["vlm"]), learning_rate=1e-2)
    seen = []
    for workers in (0, 2):
        output = tmp_path / f"student-{workers}"
        train_student(
            [table],
            PLAN,
            spec,
            seed=0,
            output=output,
            shelf_of=[shelf],
            compute=ComputeSpec(loader_workers=workers),
        )
        seen.append(Teacher(TeacherSpec(model=str(output))).encode(table.inputs("query", shelf)))
    np.testing.assert_array_equal(*seen)
    assert torch.utils.data.get_worker_info() is None


def test_a_student_of_texts_refuses_a_dataset_of_pictures(
    tmp_path: Path, models: dict[str, Path]
) -> None:
    table, shelf = pairs(tmp_path, query_text=False)
    with pytest.raises(InputError, match="dataset pictures has images or videos, but student"):
        train_student(
            [table],
            PLAN,
            TrainSpec(student=str(models["bert"])),
            seed=0,
            output=tmp_path / "student",
            shelf_of=[shelf],
        )
