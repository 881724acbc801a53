"""mteb's own task classes, offline, from a folder."""

import importlib.util

import pytest
from datasets import Dataset, Features, Image, Value, Video

from b3_core.errors import InputError
from b3_core.evaluate.mteb_tasks import local_task, run_task
from tests.benchmark_folders import TOLD, ColourEncoder, clip, picture

pytestmark = [
    pytest.mark.slow,  # mteb imports all of its tasks
    pytest.mark.skipif(importlib.util.find_spec("mteb") is None, reason="mteb is not installed"),
    pytest.mark.filterwarnings("ignore:The task .* is currently in beta"),
]

README = """---
configs:
- config_name: corpus
  data_files: [{split: test, path: corpus.parquet}]
- config_name: queries
  data_files: [{split: test, path: queries.parquet}]
- config_name: qrels
  data_files: [{split: test, path: qrels.parquet}]
---
"""


@pytest.mark.slow
def test_flickr30k_from_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "copy"
    for at, (colour, _) in enumerate(TOLD):
        picture(tmp_path / f"{at}.png", colour)
    captions = [(at, n, word) for at, (_, said) in enumerate(TOLD) for n, word in enumerate(said)]
    folder.mkdir()
    (folder / "README.md").write_text(README)
    Dataset.from_dict(
        {
            "id": [str(at) for at in range(5)],
            "modality": ["image"] * 5,
            "image": [str(tmp_path / f"{at}.png") for at in range(5)],
        },
        features=Features({"id": Value("string"), "modality": Value("string"), "image": Image()}),
    ).to_parquet(folder / "corpus.parquet")
    Dataset.from_dict(
        {
            "id": [f"{at}-{n}" for at, n, _ in captions],
            "modality": ["text"] * 25,
            "text": [f"It is {word}." for *_, word in captions],
        }
    ).to_parquet(folder / "queries.parquet")
    Dataset.from_dict(
        {
            "query-id": [f"{at}-{n}" for at, n, _ in captions],
            "corpus-id": [str(at) for at, *_ in captions],
            "score": [1] * 25,
        }
    ).to_parquet(folder / "qrels.parquet")
    encoder = ColourEncoder()
    result = run_task(
        local_task("Flickr30kT2IRetrieval", str(folder)), encoder, prompts={"query": "find "}
    )
    scores = result.scores["test"][0]
    # As in test_benchmarks: of 25 captions 18 find their medium first.
    assert scores["hit_rate_at_1"] == pytest.approx(18 / 25)
    assert result.task_name == "Flickr30kT2IRetrieval"
    assert {(prompt, item.kind) for prompt, item in encoder.asked} == {("find ", ""), ("", "image")}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "first"), [("MSRVTTT2V", 3 / 5), ("MSRVTTV2T", 3 / 5)])
def test_msrvtt_from_a_folder_without_torchcodec(tmp_path, monkeypatch, name, first):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n"
        "  data_files: [{split: test, path: test.parquet}]\n---\n"
    )
    rows = []
    for at, (colour, said) in enumerate(TOLD):
        clip(tmp_path / f"{at}.mp4", colour)
        content = (tmp_path / f"{at}.mp4").read_bytes()
        rows.append({"video": {"bytes": content, "path": None}, "caption": f"It is {said[0]}."})
    Dataset.from_list(
        rows, features=Features({"video": Video(), "caption": Value("string")})
    ).to_parquet(folder / "test.parquet")
    encoder = ColourEncoder()
    result = run_task(local_task(name, str(folder)), encoder, prompts={"query": "find "})
    # TO_MEDIUM_1, TO_CAPTION_1; but cyan's caption, as good as another, is first for mteb.
    assert result.scores["test"][0]["hit_rate_at_1"] == pytest.approx(first)
    assert {item.kind for _, item in encoder.asked} == {"", "video"}
    assert len(encoder.asked) == 10


def test_what_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no README\.md"):
        local_task("Flickr30kT2IRetrieval", str(tmp_path))
    (tmp_path / "README.md").touch()
    with pytest.raises(InputError, match="no task 'Flickr'"):
        local_task("Flickr", str(tmp_path))
    with pytest.raises(InputError, match="MSRVTTVA2T needs audio; expected text, image, video"):
        local_task("MSRVTTVA2T", str(tmp_path))
