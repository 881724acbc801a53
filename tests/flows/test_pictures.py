"""Pictures all the way: mined, trained on, judged by benchmarks; by models of each architecture."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from b3_core import corpus
from b3_core.evaluate import mmeb
from b3_core.manifest import Manifest
from b3_core.mined import MinedBatches
from b3_core.store import open_artifact
from tests import benchmark_folders, tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

TASKS = ("OK-VQA", "MSCOCO_t2i")

READS_TOGETHER = {"pooling": "lasttoken", "query_prompt": "Name it."}
MODELS = {
    "qwen2_vl": (lambda texts, folder: tiny.qwen2_vl(folder), READS_TOGETHER),
    "qwen2_5_vl": (lambda texts, folder: tiny.qwen2_5_vl(folder), READS_TOGETHER),
    "internvl": (lambda texts, folder: tiny.internvl(folder), READS_TOGETHER),
    "siglip": (tiny.siglip, {}),
    "siglip2": (lambda texts, folder: tiny.siglip2(folder), {}),
}


def config_of(folder, model, precision):
    made = corpus.read_corpus(corpus.KINDS["icons"], 384, heldout=48)
    pq.write_table(made.train, folder / "icons.parquet")
    pq.write_table(made.test, folder / "heldout.parquet")
    for task in mmeb.TASKS:
        if task.name in TASKS:
            benchmark_folders.mmeb_task(folder / "mmeb", folder / "pictures", task, wrong=1)
    benchmark_folders.plain(folder / "own", "image")
    make, settings = MODELS[model]
    return {
        "name": "pictures",
        "datasets": [
            {
                "name": "icons",
                "uri": str(folder / "icons.parquet"),
                "eval_uri": str(folder / "heldout.parquet"),
                "query_image": "image",
                "positive": "text",
            }
        ],
        "teacher": {"model": "static", "reads": "positive"},
        "mining": {"k": 16, "p": 5, "m": 30},
        "batches": {"batch_size": 32, "curriculum": [{"epochs": 1}]},
        "train": {
            "student": str(make(made.train["text"].to_pylist(), folder / "model")),
            **settings,
            "lora": {"r": 2},
            "chunk_rows": 8,
            "precision": precision,
            "image_side": 28,
        },
        "evaluate": {
            "reverse": True,
            "benchmarks": [
                {
                    "name": "mmeb",
                    "folder": str(folder / "mmeb"),
                    "media": str(folder / "pictures"),
                },
                {"name": "images", "folder": str(folder / "own")},
            ],
        },
        "arms": ["b3"],
        "store": {"root": str(folder / "store")},
        "compute": {"workers": 1},
    }


@pytest.mark.parametrize(
    ("model", "precision"),
    [
        ("qwen2_vl", "fp32"),
        ("qwen2_vl", "bf16"),
        ("qwen2_5_vl", "bf16"),
        ("internvl", "fp32"),
        ("siglip", "fp32"),
        ("siglip2", "bf16"),
    ],
)
def test_a_model_is_mined_for_trained_and_judged(b3, tmp_path, model, precision):
    config = tmp_path / "pictures.yaml"
    spec = config_of(tmp_path, model, precision)
    config.write_text(yaml.safe_dump(spec))
    found = json.loads(b3("run", config, "--json", timeout=900).stdout)

    assert set(found["tasks"]) == {"icons", "icons-reverse"}
    assert all(0 < table["arms"][0]["mrr"] < 1 for table in found["tasks"].values())
    head = Manifest.read_head(open_artifact(found["manifest"]))
    assert head["datasets"][0]["quality"][-1]["window"] > 5 * 31 * 30 / 384 / 31

    mmeb_found, own = found["benchmarks"]["b3"]
    ran = {score["task"]: score for score in mmeb_found["scores"] if score["metrics"]}
    assert set(ran) == set(TASKS)
    assert all(0 <= score["metrics"]["hit@1"] <= 1 for score in ran.values())
    assert [score["task"] for score in own["scores"]] == ["t2i", "i2t"]
    assert "Not in the local copy (34)" in Path(found["benchmarks_report"]).read_text()

    sheet = Image.open(found["pictures"]["batch-b3.png"])
    assert sheet.width > 800 and len(sheet.getcolors(1 << 20)) > 50

    mined = MinedBatches.open(found["manifest"])
    item = mined.slots[int(next(iter(mined.sampler()))[0])]
    assert item["query"]["image"].size == (48, 48)
    assert set(item["positive"]) == {"text"}

    again = b3("run", config, "--json", timeout=300)
    assert json.loads(again.stdout)["up_to_date"] is True

    # A benchmark that cannot be run costs neither the others nor what is there.
    next((tmp_path / "own").rglob("*.png")).write_bytes(b"no picture")
    spec["evaluate"]["benchmarks"][1]["text_query_prompt"] = "a picture of "
    config.write_text(yaml.safe_dump(spec))
    failed = b3("run", config, timeout=300, check=False)
    assert failed.returncode == 1
    assert "1 of 1 benchmark tasks failed, first b3 on images" in failed.stderr
