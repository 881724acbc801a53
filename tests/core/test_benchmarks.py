"""Every benchmark from a small local copy, end to end, with metrics worked out by hand."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from b3_core.errors import InputError
from b3_core.evaluate import benchmark_report as report
from b3_core.evaluate import captions, mmeb
from b3_core.evaluate.benchmark import (
    BENCHMARKS,
    Benchmark,
    Prompts,
    read_captions,
    run_benchmark,
    tasks_of,
)
from b3_core.evaluate.encoder import Embedder
from b3_core.evaluate.local import media_names
from b3_core.evaluate.published import PUBLISHED, published_for
from b3_core.media import Item, MediaError, MediaRoot
from tests import benchmark_folders as folders
from tests.benchmark_folders import ColourEncoder

# benchmark_folders.TOLD: media red, green, blue, yellow, cyan with five captions each.
# A caption's medium: red 1 1 2 1 1, for "yellow red" is more yellow than red; green 1 x 5; blue
# 5 1 1 1 1, for "yellow yellow blue" is less blue than anything; yellow 4 x 5, for its captions say
# cyan; cyan 1 x 5.
TO_MEDIUM = [1, 1, 2, 1, 1] + [1] * 5 + [5, 1, 1, 1, 1] + [4] * 5 + [1] * 5
# A medium's best caption: of yellow it is cyan, behind two with yellow in them, 4 red and 5 green;
# of cyan it is as good as yellow's five, which stand earlier.
TO_CAPTION = [1, 1, 1, 12, 6]
# With only the first caption of each: yellow's cyan is behind red, green and blue's "yellow yellow
# blue"; blue's own is behind two cyan ones; cyan's own equals yellow's.
TO_MEDIUM_1 = [1, 1, 5, 4, 1]
TO_CAPTION_1 = [1, 1, 3, 4, 2]


def by_hand(ranks: list[int]) -> dict[str, float]:
    count = len(ranks)
    return {
        **{f"hit@{k}": sum(rank <= k for rank in ranks) / count for k in (1, 5, 10)},
        "median_rank": sorted(ranks)[count // 2],
        "mrr": sum(1 / rank for rank in ranks) / count,
    }


SETS = {
    "flickr30k": (lambda folder: folders.karpathy(folder, "flickr30k"), 5),
    "coco": (lambda folder: folders.karpathy(folder, "coco"), 5),
    "urban1k": (folders.urban1k, 1),
    "images": (lambda folder: folders.plain(folder, "image"), 5),
    "videos": (lambda folder: folders.plain(folder, "video"), 5),
    "msrvtt": (folders.msrvtt_csv, 1),
    "msrvtt json": (folders.msrvtt_json, 1),
    "msvd": (folders.msvd_json, 5),
    "msvd text": (folders.msvd_text, 5),
    "didemo": (folders.didemo, 1),
    "vatex": (folders.vatex, 5),
    "activitynet": (folders.activitynet, 1),
}


@pytest.mark.parametrize("which", SETS)
def test_captions_both_ways(which, tmp_path):
    make, told = SETS[which]
    tmp_path.joinpath("copy").mkdir()
    make(tmp_path / "copy")
    spec = Benchmark(which.split()[0], str(tmp_path / "copy"))
    result = run_benchmark(spec, ColourEncoder())
    assert [score.error for score in result.scores] == ["", ""]
    to_medium, to_caption = result.scores
    wanted = (TO_MEDIUM, TO_CAPTION) if told == 5 else (TO_MEDIUM_1, TO_CAPTION_1)
    assert to_medium.metrics == pytest.approx(by_hand(wanted[0]), abs=1e-9)
    assert to_caption.metrics == pytest.approx(by_hand(wanted[1]), abs=1e-9)
    assert (to_medium.queries, to_medium.candidates) == (5 * told, 5)
    assert (to_caption.queries, to_caption.candidates) == (5, 5 * told)
    assert result.complete


def test_the_sets_above_are_all():
    assert {which.split()[0] for which in SETS} | {"mmeb", "coco-1k"} == set(BENCHMARKS)


def test_coco_1k_is_the_first_of_its_five_parts(tmp_path, monkeypatch):
    folders.karpathy(tmp_path, "coco")
    monkeypatch.setattr(captions, "COCO_1K", 2)
    found = read_captions(Benchmark("coco-1k", str(tmp_path)))
    assert found.files == ("val2014/0000.jpg", "val2014/0001.jpg")
    assert found.captions[:3] == ("It is red.", "It is red.", "It is yellow red.")
    assert found.owner_C.tolist() == [0] * 5 + [1] * 5


def test_paragraphs_and_first_lines(tmp_path):
    for name in ("didemo", "activitynet", "urban1k"):
        tmp_path.joinpath(name).mkdir()
        getattr(folders, name)(tmp_path / name)
    read = {
        name: read_captions(Benchmark(name, str(tmp_path / name)))
        for name in ("didemo", "activitynet", "urban1k")
    }
    assert read["didemo"].captions[0] == "at first then red"
    assert read["didemo"].files[0] == "videos/10@N00_0.mov.mp4"
    assert read["activitynet"].captions[1] == "it is green"
    assert read["activitynet"].files[1:3] == ("v_a1.mp4", "a2.mp4")
    assert read["urban1k"].captions[0] == "It is red."


def test_prompts_go_to_their_side(tmp_path):
    folders.urban1k(tmp_path)
    encoder = ColourEncoder()
    prompts = Prompts(text_query="find ", media_target="shown ", media_query="tell ")
    run_benchmark(Benchmark("urban1k", str(tmp_path), prompts=prompts), encoder)
    asked = [(prompt, item.kind) for prompt, item in encoder.asked]
    assert asked == [
        *[("find ", "")] * 4,  # "It is cyan." is told of two, and asked for once
        *[("shown ", "image")] * 5,
        *[("tell ", "image")] * 5,
        *[("", "")] * 4,
    ]


def test_missing_media_are_refused_or_left_out_and_said(tmp_path):
    folders.karpathy(tmp_path, "flickr30k")
    (tmp_path / "flickr30k-images" / "0003.jpg").unlink()
    refused = run_benchmark(Benchmark("flickr30k", str(tmp_path)), ColourEncoder())
    for score in refused.scores:
        assert "1 of 5 media" in score.error
        assert "'0003.jpg'" in score.error
    spec = Benchmark("flickr30k", str(tmp_path), drop_missing=True)
    result = run_benchmark(spec, ColourEncoder())
    assert [score.left_out for score in result.scores] == [1, 1]
    # Without yellow: only "yellow red" and "yellow yellow blue" find something else than before.
    assert result.scores[1].metrics["hit@1"] == 1
    assert not result.complete
    assert "1 media are not in the local copy" in report.markdown([result])
    assert "results: []" in report.model_index([result], model="m")


def test_media_elsewhere_and_names_that_are_two_files(tmp_path):
    folders.vatex(tmp_path / "all")
    media = tmp_path / "media"
    media.mkdir()
    for path in (tmp_path / "all").glob("*.mp4"):
        path.rename(media / path.name)
    spec = Benchmark("vatex", str(tmp_path / "all"), media=str(media), tasks=("v2t",))
    assert [score.task for score in run_benchmark(spec, ColourEncoder()).scores] == ["v2t"]
    (media / "again").mkdir()
    shutil.copy(media / "id0_000010_000020.mp4", media / "again")
    (media / "again" / "id0_000010_000020.mp4").rename(media / "again" / "id0_000010_000020.avi")
    with pytest.raises(InputError, match="1 of 5 media .* are not there, the first 'id0"):
        read_captions(spec)


def test_annotations_that_are_none(tmp_path):
    spec = Benchmark("msvd", str(tmp_path))
    folders.msvd_json(tmp_path)
    (tmp_path / "raw-captions.json").rename(tmp_path / "raw-captions.pkl")
    with pytest.raises(InputError, match="a pickle can run code and is not read"):
        read_captions(spec)
    (tmp_path / "raw-captions.json").write_text("{")
    with pytest.raises(InputError, match="is no JSON"):
        read_captions(spec)
    (tmp_path / "raw-captions.json").write_text("[]")
    with pytest.raises(InputError, match="expected captions by video"):
        read_captions(spec)
    (tmp_path / "raw-captions.json").write_text('{"-4w_0_1": ["a"]}')
    with pytest.raises(InputError, match="'-4w_1_2' of test_list.txt has no caption"):
        read_captions(spec)
    with pytest.raises(InputError, match="no benchmark 'mmebs'"):
        Benchmark("mmebs", "")
    with pytest.raises(InputError, match="coco has no task 'v2t'"):
        Benchmark("coco", "", tasks=("v2t",))


@pytest.fixture
def mmeb_copy(tmp_path):
    """All 36 tasks; of task number i the first i % 4 of 4 queries are answered wrongly."""
    for at, task in enumerate(mmeb.TASKS):
        folders.mmeb_task(tmp_path / "mmeb", tmp_path / "images", task, wrong=at % 4)
    return Benchmark("mmeb", str(tmp_path / "mmeb"), media=str(tmp_path / "images"))


def test_the_table_of_tasks():
    assert len(mmeb.TASKS) == len({task.name for task in mmeb.TASKS}) == 36
    count = {meta: sum(task.meta == meta for task in mmeb.TASKS) for meta in mmeb._BY_META}
    assert count == {"classification": 10, "vqa": 10, "retrieval": 12, "grounding": 4}
    assert sum(task.trained for task in mmeb.TASKS) == 20
    prompts = {task.name: mmeb.positive_prompt(task) for task in mmeb.TASKS}
    assert prompts["ObjectNet"] == "Represent the class label: "
    assert prompts["GQA"] == "Represent the answer: "
    assert prompts["MSCOCO_i2t"] == prompts["VisualNews_i2t"] == "Represent the image caption: "
    assert sum(prompt != "" for prompt in prompts.values()) == 22


def test_mmeb_end_to_end(mmeb_copy):
    told = []
    encoder = ColourEncoder()
    result = run_benchmark(mmeb_copy, encoder, progress=lambda *at: told.append(at))
    hit = {score.task: score.metrics["hit@1"] for score in result.scores}
    assert hit == {task.name: 1 - at % 4 / 4 for at, task in enumerate(mmeb.TASKS)}
    assert told[-1] == (36, 36)
    # Of each run of four tasks the mean is (1 + 3/4 + 1/2 + 1/4) / 4 = 5/8; classification and VQA
    # have 1, 3/4 and 1/2, 1/4 beyond two such runs.
    means = {name: mean.value for name, mean in result.means.items()}
    assert means == pytest.approx(
        {
            "all": 5 / 8,
            "classification": (8 * 5 / 8 + 1 + 3 / 4) / 10,
            "vqa": (8 * 5 / 8 + 1 / 2 + 1 / 4) / 10,
            "retrieval": 5 / 8,
            "grounding": 5 / 8,
            # Tasks 0 to 4, 10 to 15, 20 to 27 and 32.
            "in-domain": (3.5 + 3.25 + 5 + 1) / 20,
            "out-of-domain": (36 * 5 / 8 - 12.75) / 16,
        }
    )
    assert {(mean.ran, mean.of, mean.partial) for mean in result.means.values()} == {
        (count, count, False) for count in (36, 10, 12, 4, 20, 16)
    }
    assert result.complete
    assert not any("<|image_1|>" in item.text for _, item in encoder.asked)
    assert ("Represent the answer: ", Item(text="red")) in encoder.asked
    assert ("", Item("Find what is red.", "image", "GQA/red.png")) in encoder.asked
    assert ("", Item("Represent it.", "image", "RefCOCO/red.png")) in encoder.asked


def test_mmeb_without_prompts(mmeb_copy, tmp_path):
    spec = Benchmark(
        "mmeb", mmeb_copy.folder, mmeb_copy.media, tasks=("GQA",), positive_prompts=False
    )
    encoder = ColourEncoder()
    result = run_benchmark(spec, encoder)
    assert {prompt for prompt, _ in encoder.asked} == {""}
    assert len(encoder.asked) == len(set(encoder.asked)) == 4 + 5  # each candidate once
    assert result.means["all"].partial
    assert result.means["all"].ran == 1


def test_a_missing_and_a_failed_task_do_not_lose_the_others(mmeb_copy, tmp_path):
    shutil.rmtree(tmp_path / "mmeb" / "CIRR")
    (tmp_path / "images" / "GQA" / "red.png").unlink()
    pq.write_table(pa.table({"qry_text": ["a"]}), tmp_path / "mmeb" / "EDIS" / "test-0.parquet")
    result = run_benchmark(mmeb_copy, ColourEncoder())
    by_task = {score.task: score for score in result.scores}
    assert by_task["CIRR"].missing
    assert "red.png" in by_task["GQA"].error
    assert "column 'qry_img_path' not in" in by_task["EDIS"].error
    assert sum(bool(score.metrics) for score in result.scores) == 33
    assert (result.means["all"].ran, result.means["vqa"].ran) == (33, 9)
    assert not result.means["grounding"].partial
    assert not result.complete
    text = report.markdown([result])
    assert "(33/36)" in text
    assert "Not in the local copy (1): CIRR." in text
    assert "GQA failed: `" in text
    rows = [line for line in text.splitlines() if line.startswith("| GQA") or "| CIRR" in line]
    assert rows == ["| GQA | vqa | out | failed |  |  |"]


def test_rows_of_mmeb_that_cannot_be(tmp_path):
    folder = tmp_path / "GQA"
    folder.mkdir()

    def refused(**change):
        row = {"qry_text": "a", "qry_img_path": None, "tgt_text": ["b"], "tgt_img_path": [""]}
        pq.write_table(pa.Table.from_pylist([{**row, **change}]), folder / "a.parquet")
        with pytest.raises(InputError) as error:
            mmeb.read_task(tmp_path, "GQA")
        return str(error.value)

    assert "not as many target texts" in refused(tgt_img_path=["", ""])
    assert "has no candidates" in refused(tgt_text=[], tgt_img_path=[])
    assert "where a text was expected" in refused(qry_text=7)
    assert "not as many target texts" in refused(tgt_text="b")
    (folder / "a.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(InputError, match="cannot read"):
        mmeb.read_task(tmp_path, "GQA")


def test_a_candidate_twice_in_a_list_is_no_competitor(tmp_path):
    (tmp_path / "GQA").mkdir()
    row = {"qry_text": "red", "qry_img_path": "", "tgt_text": ["red", "blue", "red"]}
    table = pa.Table.from_pylist([{**row, "tgt_img_path": ["", "", ""]}])
    pq.write_table(table, tmp_path / "GQA" / "a.parquet")
    lists = mmeb.read_task(tmp_path, "GQA")
    assert lists.parts.row_P.tolist() == [0, 1, 0]
    result = run_benchmark(Benchmark("mmeb", str(tmp_path), tasks=("GQA",)), ColourEncoder())
    assert result.scores[0].metrics["hit@1"] == 1


class Kept:
    """A memory that is a dict."""

    def __init__(self) -> None:
        self.vectors: dict[str, np.ndarray] = {}

    def take(self, keys):
        return {key: self.vectors[key] for key in keys if key in self.vectors}

    def keep(self, keys, vector_UD):
        self.vectors.update(zip(keys, vector_UD, strict=True))


def test_what_the_memory_has_is_not_encoded_again(tmp_path):
    folders.urban1k(tmp_path)
    memory, first, second = Kept(), ColourEncoder(), ColourEncoder()
    spec = Benchmark("urban1k", str(tmp_path))
    result = run_benchmark(spec, first, memory=memory)
    # Content, not names: the same image under another name is known, another under the same not.
    (tmp_path / "image" / "1.jpg").rename(tmp_path / "image" / "9.jpg")
    (tmp_path / "caption" / "1.txt").rename(tmp_path / "caption" / "9.txt")
    folders.picture(tmp_path / "image" / "2.jpg", "magenta")
    again = run_benchmark(spec, second, memory=memory)
    assert [item.file for _, item in second.asked] == ["image/2.jpg"]
    assert len(first.asked) == 4 + 5  # "It is cyan." twice
    assert again.scores[0].metrics != result.scores[0].metrics
    prompted = ColourEncoder()
    prompts = Prompts(media_target="a ", media_query="a ")
    run_benchmark(Benchmark("urban1k", str(tmp_path), prompts=prompts), prompted, memory=memory)
    assert {prompt for prompt, _ in prompted.asked} == {"a "}


def test_a_medium_that_the_memory_needs_is_named(tmp_path):
    folders.urban1k(tmp_path)
    embedder = Embedder(ColourEncoder(), MediaRoot(str(tmp_path)), Kept())
    with pytest.raises(MediaError, match="'image/no.jpg' "):
        embedder.embed([Item(kind="image", file="image/no.jpg")])


def test_an_encoder_that_returns_something_else(tmp_path):
    class Short(ColourEncoder):
        def encode_items(self, items, root, *, prompt="", progress=None):
            return super().encode_items(items, root)[1:]

    with pytest.raises(InputError, match="expected one vector an item"):
        Embedder(Short(), MediaRoot(str(tmp_path))).embed([Item("a"), Item("b")])


def test_listing(tmp_path):
    with pytest.raises(InputError, match="no files below"):
        media_names(str(tmp_path))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.jpg").touch()
    (tmp_path / "a.jpg").touch()
    assert media_names(str(tmp_path)) == ["a.jpg", "b/c.jpg"]


def test_published_rows_are_those_of_known_benchmarks():
    for row in PUBLISHED:
        assert row.benchmark in BENCHMARKS
        assert set(row.figures) <= {"all", *tasks_of(row.benchmark)}
    assert published_for("mmeb")[0].figures == {"all": 68.1}
    assert published_for("coco-1k") == []


def test_report(mmeb_copy, tmp_path):
    folders.karpathy(tmp_path / "flickr", "flickr30k")
    flickr = Benchmark("flickr30k", str(tmp_path / "flickr"))
    results = [run_benchmark(spec, ColourEncoder()) for spec in (mmeb_copy, flickr)]
    text = report.markdown(results, model="toy|1")
    lines = text.splitlines()
    assert "| toy\\|1 | 62.50 |" in lines
    assert "| B3++ 2B (arXiv 2505.11293) | 68.1 |" in lines
    assert {"| classification | 67.50 |", "| vqa | 57.50 |", "| grounding | 62.50 |"} <= set(lines)
    assert "| N24News | classification | in | 75.0 | 4 | 5 |" in lines
    assert "| t2i | toy\\|1 | 72.0 | 100.0 | 100.0 | 1 | 25 | 5 |" in lines
    assert "| i2t | B3++ 2B (arXiv 2505.11293) | 94.9 |  |  |  |  |  |" in lines
    assert len({line.count("|") - line.count("\\|") for line in lines if line[:5] == "| t2i"}) == 1

    together = report.side_by_side({"toy|1": results, "other": results}).splitlines()
    assert together[0] == "| benchmark | hit@1 of | toy\\|1 | other | published |"
    assert together[2] == "| MMEB | all | 62.50 | 62.50 | 68.1 (B3++ 2B) |"
    assert together[3] == "| MMEB | classification | 67.50 | 67.50 |  |"
    assert together[-2] == "| Flickr30k | t2i | 72.0 | 72.0 | 82.8 (B3++ 2B) |"
    assert len(together) == 2 + 7 + 2

    data = json.loads(json.dumps(report.as_json(results)))
    assert data[0]["means"]["all"] == {"value": 0.625, "ran": 36, "of": 36, "partial": False}
    assert data[1]["scores"][0]["metrics"]["hit@1"] == 0.72
    card = yaml.safe_load(report.model_index(results, model="toy"))["model-index"][0]
    found = {each["dataset"]["name"]: each["metrics"][0]["value"] for each in card["results"]}
    assert found["MMEB (mean, all)"] == 62.5
    assert found["Flickr30k t2i"] == 72.0


@pytest.mark.slow
def test_mteb_reads_the_result_files(tmp_path):
    folders.urban1k(tmp_path / "urban")
    result = run_benchmark(Benchmark("urban1k", str(tmp_path / "urban")), ColourEncoder())
    paths = report.write_mteb_results([result], tmp_path / "results")
    assert [path.name for path in paths] == ["b3_urban1k_t2i.json", "b3_urban1k_i2t.json"]
    results = pytest.importorskip("mteb.results")
    read = results.TaskResult.from_disk(paths[0])
    assert read.get_score() == pytest.approx(0.6)
    assert read.scores["test"][0]["hit_rate_at_5"] == 1
