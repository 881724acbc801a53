"""Hard negatives that rows come with and that are pictures: from the user's files to the loss."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from b3_core import mined as mined_module
from b3_core.batches import BatchPlan
from b3_core.config import BatchSpec, DatasetSpec, EvalSpec, TeacherSpec, TrainSpec
from b3_core.dataset_stage import Pairs
from b3_core.errors import InputError
from b3_core.inputs import Seeing
from b3_core.mined import MinedBatches
from b3_core.pairs import NOBODY, Split, shelf_of
from b3_core.reading import media_look
from b3_core.store import ArtifactStore
from b3_core.teacher import Teacher
from b3_core.train import train_student
from tests import tiny
from tests.core.test_manifest import mine_datasets
from tests.media import png

pytestmark = pytest.mark.usefixtures("one_looker")

ROWS = 12
COLORS = [(20 * n, 240 - 20 * n, 10 * n) for n in range(ROWS)]
WRONG = [(250 - 20 * n, 9, 9) for n in range(ROWS)]


def mmeb(folder: Path, **changes: list[str]) -> DatasetSpec:
    """MMEB-train's layout: pictures of every fourth row, texts of the next, none of the others."""
    root = folder / "images"
    root.mkdir(parents=True)
    for number in range(ROWS):
        (root / f"{number}.png").write_bytes(png(COLORS[number]))
        (root / f"wrong-{number}.png").write_bytes(png(WRONG[number]))
    columns = {
        "qry": [f"<|image_1|>\nWhat is {n}?" for n in range(ROWS)],
        "qry_image_path": [f"{n}.png" for n in range(ROWS)],
        "pos_text": [f"<|image_1|>\nIt is {n}." for n in range(ROWS)],
        "pos_image_path": [f"{n}.png" for n in range(ROWS)],
        "neg_text": [["<|image_1|>\nNo.", "It is not.", "", None][n % 4] for n in range(ROWS)],
        "neg_image_path": [f"wrong-{n}.png" if n % 4 == 0 else "" for n in range(ROWS)],
    }
    pq.write_table(pa.table(columns | changes), folder / "original.parquet")
    return DatasetSpec(
        name="A",
        uri=str(folder / "original.parquet"),
        layout="mmeb",
        negative="neg_text",
        negative_image="neg_image_path",
        media={"root": str(root)},
    )


def read(spec: DatasetSpec, folder: Path) -> tuple[Split, Pairs, ArtifactStore]:
    store, stage = ArtifactStore(str(folder / "store")), Pairs.of(spec, EvalSpec(holdout=0.1))
    return Split.load(stage.run(store)), stage, store


def keys_of(split: Split) -> dict[int, str]:
    tables = [part.table for part in (split.train, split.heldout)]
    return {row["row_id"]: row["key"] for table in tables for row in table.to_pylist()}


def test_mmeb_has_negatives_of_pictures_of_texts_and_none(tmp_path: Path) -> None:
    spec = mmeb(tmp_path)
    split, stage, store = read(spec, tmp_path)
    shelf = shelf_of(spec, store.get(stage.address))
    table = split.train
    seen = zip(
        table.table["row_id"].to_pylist(),
        table.inputs("negative", shelf)[:],
        table.inputs("positive", shelf)[:],
        table.negative_group_N,
        strict=True,
    )
    kinds = set()
    for row, negative, positive, group in seen:
        if row % 4 == 0:
            assert negative["text"] == "No."
            assert negative["image"].getpixel((0, 0)) == WRONG[row]
        elif row % 4 == 1:
            assert negative == {"text": "It is not."}
        else:  # its own positive, which is nobody's negative
            assert negative["text"] == positive["text"] == f"It is {row}."
            assert negative["image"].getpixel((0, 0)) == COLORS[row]
        assert (group == NOBODY) == (row % 4 > 1)
        kinds.add(row % 4)
    assert kinds == {0, 1, 2, 3}


def test_a_negatives_bytes_are_part_of_its_rows_key(tmp_path: Path) -> None:
    keys = []
    for number, changed in enumerate((None, 4)):
        spec = mmeb(tmp_path / str(number))
        if changed is not None:
            look = media_look(spec, spec.uri)
            (tmp_path / f"{number}/images/wrong-{changed}.png").write_bytes(png((1, 2, 3)))
            assert media_look(spec, spec.uri) != look
        keys.append(keys_of(read(spec, tmp_path / str(number))[0]))
    assert {row for row in range(ROWS) if keys[0][row] != keys[1][row]} == {4}


def test_rows_without_negatives_have_the_keys_they_had(tmp_path: Path) -> None:
    plain = {"negative": None, "negative_image": None}
    spec = mmeb(tmp_path)
    before = Pairs.of(spec.model_copy(update=plain), EvalSpec()).settings
    assert set(before) == {
        *("query", "positive", "group", "media", "limits", "layout"),
        *("holdout", "max_queries", "own_eval"),
    }
    assert set(before["media"]) == {"query", "positive"}


def test_a_negative_of_another_rows_positive_is_of_its_group(tmp_path: Path) -> None:
    texts = [f"<|image_1|>\nIt is {(n + 1) % ROWS}." for n in range(ROWS)]
    files = [f"{(n + 1) % ROWS}.png" for n in range(ROWS)]
    split, _, _ = read(mmeb(tmp_path, neg_text=texts, neg_image_path=files), tmp_path)
    row_N = np.array(split.train.table["row_id"].to_pylist())
    group_of = dict(zip(row_N, split.train.group_N, strict=True))
    group_of |= dict(
        zip(split.heldout.table["row_id"].to_pylist(), split.heldout.group_N, strict=True)
    )
    expected = [group_of[(row + 1) % ROWS] for row in row_N]
    assert split.train.negative_group_N.tolist() == expected


def test_bad_negatives_are_named_or_skipped(tmp_path: Path) -> None:
    spec = mmeb(tmp_path)
    (tmp_path / "images/wrong-8.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="1 of 12 rows .* wrong-8.png of row 8"):
        read(spec, tmp_path)
    spec = spec.model_copy(update={"media": spec.media.model_copy(update={"bad": "skip"})})
    split, stage, store = read(spec, tmp_path)
    skipped = pq.read_table(store.get(stage.address).path("skipped.parquet")).to_pylist()
    assert [(each["row_id"], each["side"]) for each in skipped] == [(8, "negative")]
    assert 8 not in keys_of(split)


def test_negatives_that_no_row_has_are_refused(tmp_path: Path) -> None:
    spec = mmeb(tmp_path, neg_text=[""] * ROWS, neg_image_path=[""] * ROWS)
    with pytest.raises(InputError, match="no row of .* has a negative"):
        read(spec, tmp_path)


def parquet(folder: Path, wrong: list[tuple[int, int, int]]) -> DatasetSpec:
    folder.mkdir(exist_ok=True)
    table = pa.table(
        {
            "ask": [f"question {n}" for n in range(40)],
            "answer": [f"answer {n} of {n % 7}" for n in range(40)],
            "wrong": [png(wrong[n % len(wrong)]) for n in range(40)],
        }
    )
    pq.write_table(table, folder / "rows.parquet")
    return DatasetSpec(
        name="plain",
        uri=str(folder / "rows.parquet"),
        query="ask",
        positive="answer",
        negative_image="wrong",
    )


def test_a_mined_batch_has_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mined_module, "cache_folder", lambda: tmp_path)
    spec = parquet(tmp_path, WRONG)
    store, stage = mine_datasets(tmp_path, BatchSpec(batch_size=8, negatives=1), [spec])
    mined = MinedBatches.open(store.get(stage.address).uri, seeing=Seeing(image_side=8))
    row_ids = mined.row_ids[0]
    for slot in (0, 9, 17):
        item = mined.slots[slot]
        row = row_ids[mined.places.rows([slot])[0, 0]]
        assert set(item["negative_0"]) == {"image"}
        assert item["negative_0"]["image"].getpixel((0, 0)) == WRONG[row % len(WRONG)]
        assert item["query"] == {"text": f"question {row}"}
        assert item["negative_1"]["text"].startswith("answer")
        assert len(item["label"]) == 3


def test_a_row_without_a_negative_blank_is_still_refused(tmp_path: Path) -> None:
    spec = parquet(tmp_path, WRONG)
    table = pq.read_table(tmp_path / "rows.parquet")
    wrong = [None, *table["wrong"].to_pylist()[1:]]
    pq.write_table(table.set_column(2, "wrong", pa.array(wrong)), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="'negative' is null or blank in 1 row, first in row 0"):
        read(spec, tmp_path)


def plan_of(rows_SB: list[list[int]]) -> BatchPlan:
    row_SB = np.array(rows_SB, np.int32)
    none_S = np.zeros(len(row_SB), np.int16)
    return BatchPlan(
        row_SB,
        np.zeros_like(row_SB, np.int16),
        none_S,
        np.full_like(row_SB, -1),
        np.zeros((0, 3), np.int32),
    )


def test_a_training_step_sees_the_negatives_picture(tmp_path: Path) -> None:
    student = tiny.qwen2_vl(tmp_path / "vlm")
    seen = []
    for number, wrong in enumerate((WRONG, WRONG, [(0, 0, 0)])):
        folder = tmp_path / str(number)
        spec = parquet(folder, wrong)
        split, stage, store = read(spec, folder)
        trained = folder / "student"
        train_student(
            [split.train],
            plan_of([[0, 1, 2, 3], [4, 5, 6, 7]]),
            TrainSpec(student=str(student), learning_rate=1e-2, image_side=28),
            seed=0,
            output=trained,
            shelf_of=[shelf_of(spec, store.get(stage.address))],
        )
        seen.append(Teacher(TeacherSpec(model=str(trained))).encode(["question 3", "answer 5"]))
    np.testing.assert_allclose(seen[0], seen[1], atol=1e-4)
    assert np.abs(seen[0] - seen[2]).max() > 1e-2
