"""A CONFIG out of a look at data: roles by name and content, and text that reads back the same."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from b3_core.config import DatasetSpec, EvalSpec, parse_config
from b3_core.config_text import config_text, scalar
from b3_core.errors import InputError
from b3_core.glance import count_rows, draw_rows, glance
from b3_core.reading import read_split
from b3_core.suggest import answers, dividing, find
from tests.conftest import examples


def written(path, **given):
    seen = glance(str(path))
    found = find(seen, {k: v for k, v in given.items() if not isinstance(v, int)})
    sizes = {k: v for k, v in given.items() if isinstance(v, int)}
    text = config_text(answers(found, seen, uri=str(path), **sizes))
    return parse_config(yaml.safe_load(text), base=path.parent), found


def save(folder, columns, name="data.parquet"):
    file = folder / name
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), file)
    return file


WORDS = [f"word {i} of {i * 7}" for i in range(400)]
OTHER = [f"an answer, number {i}, which is long" for i in range(400)]


@pytest.mark.parametrize(
    ("columns", "roles"),
    [
        ({"question": WORDS, "answer": OTHER}, {"query": "question", "positive": "answer"}),
        ({"b": OTHER, "query": WORDS}, {"query": "query", "positive": "b"}),
        (
            {"anchor": WORDS, "positive": OTHER, "negative": WORDS[::-1]},
            {"query": "anchor", "positive": "positive", "negative": "negative"},
        ),
        (
            {"question_text": WORDS, "answer_text": OTHER, "doc_id": list(range(400))},
            {"query": "question_text", "positive": "answer_text", "group": "doc_id"},
        ),
        ({"left": WORDS, "right": OTHER}, {"query": "left", "positive": "right"}),
        (
            {"text": WORDS, "label": ["spam", "ham"] * 200},
            {"query": "text", "positive": "label"},
        ),
    ],
)
def test_columns_are_told_by_their_names(tmp_path, columns, roles):
    spec, found = written(save(tmp_path, columns))
    assert dict(found.columns) == roles
    dataset = spec.datasets[0]
    assert {role: getattr(dataset, role) for role in roles} == roles


def test_labels_make_a_classification(tmp_path):
    spec, _ = written(save(tmp_path, {"text": WORDS, "label": ["spam", "ham"] * 200}))
    assert spec.datasets[0].task == "classification"
    # Labels as labels, but each once: nothing to classify.
    spec, _ = written(save(tmp_path, {"text": WORDS, "label": WORDS[::-1]}, "other.parquet"))
    assert spec.datasets[0].task == "retrieval"


def test_pictures_are_told_by_their_types(tmp_path):
    picture = pa.array([{"bytes": b"x", "path": None}] * 400)
    spec, found = written(save(tmp_path, pa.table({"image": picture, "caption": OTHER})))
    assert dict(found.columns) == {"query_image": "image", "positive": "caption"}
    assert spec.teacher.reads == "positive" and spec.train.student == "glyphs"
    paths = [f"photos/{i}.JPG" for i in range(400)]
    _, found = written(save(tmp_path, {"file": paths, "caption": OTHER}, "paths.parquet"))
    assert dict(found.columns) == {"query_image": "file", "positive": "caption"}
    columns = {"image": pa.array([b"x"] * 400), "question": WORDS, "answer": ["yes", "no"] * 200}
    spec, found = written(save(tmp_path, pa.table(columns), "vqa.parquet"))
    assert dict(found.columns) == {
        "query": "question",
        "query_image": "image",
        "positive": "answer",
    }
    assert spec.datasets[0].task == "vqa"


def test_mmeb_is_known_by_its_columns(tmp_path):
    columns = {"qry": WORDS, "qry_image_path": WORDS, "pos_text": OTHER, "pos_image_path": WORDS}
    spec, _ = written(save(tmp_path, columns))
    assert spec.datasets[0].layout == "mmeb"


@pytest.mark.parametrize("rows", [3, 20, 64, 100, 600, 10_000])
def test_sizes_fit_the_rows(tmp_path, rows):
    columns = {"q": [f"q {i}" for i in range(rows)], "a": [f"a {i}" for i in range(rows)]}
    spec, _ = written(save(tmp_path, columns))
    left = round(0.95 * rows)
    assert spec.batches.batch_size <= max(left, 2) and spec.mining.k <= spec.batches.batch_size
    assert spec.mining.p + spec.mining.m <= max(2, left // 4)


@pytest.mark.parametrize(
    ("rows", "given", "sizes"),
    [
        (600, {"batch_size": 50}, (50, 25)),
        (600, {"batch_size": 48}, (48, 24)),
        (600, {"batch_size": 37}, (37, 37)),
        (600, {"batch_size": 74}, (74, 37)),
        (600, {"batch_size": 2}, (2, 2)),
        (600, {"k": 24}, (24, 24)),
        (9, {"k": 3}, (6, 3)),
        (4, {"k": 3}, (3, 3)),
        (4, {}, (2, 2)),  # one of four rows is held out
    ],
)
def test_batches_are_whole_communities(tmp_path, rows, given, sizes):
    columns = {"q": [f"q {i}" for i in range(rows)], "a": [f"a {i}" for i in range(rows)]}
    spec, _ = written(save(tmp_path, columns), **given)
    assert (spec.batches.batch_size, spec.mining.k) == sizes


@pytest.mark.parametrize("batch", [*range(2, 40), 49, 97, 1024])
def test_all_that_divides_a_batch_is_found(batch):
    assert dividing(batch) == [k for k in range(2, batch + 1) if batch % k == 0]


@pytest.mark.parametrize(
    ("rows", "task", "cells"),
    [
        (200_000, "retrieval", None),
        (220_000, "retrieval", 32_768),
        (220_000, "classification", None),
    ],
)
def test_many_rows_are_mined_in_cells(tmp_path, rows, task, cells):
    columns = {"q": np.arange(rows).astype(str), "a": np.arange(rows).astype(str)}
    spec, _ = written(save(tmp_path, columns), query="q", positive="a", task=task)
    assert spec.mining.cell_rows == cells


def test_what_was_said_stands(tmp_path):
    file = save(tmp_path, {"question": WORDS, "answer": OTHER})
    spec, _ = written(file, query="answer", positive="question", batch_size=48, k=24, p=3, m=7)
    assert (spec.datasets[0].query, spec.datasets[0].positive) == ("answer", "question")
    assert spec.batches.batch_size == 48
    assert spec.mining.model_dump(include={"k", "p", "m"}) == {"k": 24, "p": 3, "m": 7}
    with pytest.raises(InputError, match="'reply' is not in .*correct --positive"):
        find(glance(str(file)), {"positive": "reply"})


def test_there_may_be_no_negative_and_no_group(tmp_path):
    columns = {"query": WORDS, "answer": OTHER, "negative": WORDS[::-1], "group": WORDS}
    file = save(tmp_path, columns)
    assert set(written(file)[1].columns) == {"query", "positive", "negative", "group"}
    found = written(file, negative="-", group="-")[1]
    assert set(found.columns) == {"query", "positive"}


def test_a_column_of_numbers_is_no_text(tmp_path):
    file = save(tmp_path, {"question": WORDS, "answer": OTHER, "n": list(range(400))})
    with pytest.raises(InputError, match="'n' of .* holds int64.*question, answer; correct --que"):
        find(glance(str(file)), {"query": "n"})


def test_a_single_column_is_refused_and_says_how_to_name_another(tmp_path):
    with pytest.raises(InputError, match="looks like a (query|positive).*name it with --"):
        written(save(tmp_path, {"text": WORDS, "n": list(range(400))}))


def test_repeats_and_blanks_are_told(tmp_path):
    columns = {"question": [*WORDS[:399], " "], "answer": [*OTHER[:300], *OTHER[:100]]}
    _, found = written(save(tmp_path, columns))
    assert found.notes[0] == "queries have 4.0 words, positives have 7.0 words, as a mean"
    assert any("1 of 400 rows looked at have a blank 'question'" in note for note in found.notes)
    assert any("25% of the rows looked at repeat" in note for note in found.notes)


NAMES = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=30
)


@settings(max_examples=examples(60), deadline=None, suppress_health_check=list(HealthCheck))
@example(names=["0", "webp"], seed=0)  # what a tar calls a picture
@given(names=st.lists(NAMES, min_size=2, max_size=4, unique=True), seed=st.integers(0, 99))
def test_any_parquet_of_strings_gives_a_config_that_loads(tmp_path, names, seed):
    rng = np.random.default_rng(seed)
    columns = {
        name: [f"text {rng.integers(1 << 40)} of {number}" for _ in range(40)]
        for number, name in enumerate(names)
    }
    spec, found = written(save(tmp_path, columns))
    dataset = spec.datasets[0]
    assert {dataset.query, dataset.positive} <= set(names) and dataset.query != dataset.positive
    assert found.columns["query"] == dataset.query  # as it is, through YAML


HOSTILE = [
    *("a: b", "# x", "'", '"', "- x", "{}", "[", "*a", "&a", "!!str x", "yes", "null", "1", "1e3"),
    *("a\nb", "a\tb", "\u2028", "\x85", "\x07", "naïve", "表", "😀", " lead", "trail ", "%", "@x"),
    *(
        "? a",
        "| x",
        "> x",
        "~",
        "=",
        "a #b",
        "\\",
        "\\n",
        "2026-11-26",
        "0x1f",
        "-",
        ".",
        "...",
        "",
    ),
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_is_read_back_as_it_is(text):
    assert "\n" not in scalar(text)
    assert yaml.safe_load(f"a:\n  - b: {scalar(text)}  # c\n") == {"a": [{"b": text}]}


@settings(max_examples=examples(300), deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_every_name_is_read_back_as_it_is(text):
    assert yaml.safe_load(f"a:\n  - b: {scalar(text)}  # c\n") == {"a": [{"b": text}]}


def test_rows_are_counted_over_files_and_drawn_from_all_of_them(tmp_path):
    for number in range(3):
        save(tmp_path, {"q": [f"{number} {i}" for i in range(1000)]}, f"{number}.parquet")
    assert count_rows(str(tmp_path)) == 3000
    drawn = draw_rows(str(tmp_path), {"query": "q"}, limit=100)["q"].to_pylist()
    assert 40 <= len(drawn) <= 100 and {text[0] for text in drawn} == {"0", "1", "2"}
    seen = glance(str(tmp_path))
    assert (seen.rows, seen.exact) == (3000, True)


@pytest.mark.parametrize("given", [{}, {"positive": "pos"}])
def test_lists_of_positives_are_named_with_what_to_do(tmp_path, given):
    file = save(tmp_path, {"query": WORDS, "pos": [[text] for text in OTHER]})
    with pytest.raises(InputError, match="pos.*write one row for each value of a list"):
        written(file, **given)


def test_what_readme_does_with_lists_makes_rows_that_are_told(tmp_path, monkeypatch):
    negatives = [[f"no {text}", "another"] for text in OTHER]
    lists = {"query": WORDS, "pos": [[text, text.upper()] for text in OTHER], "neg": negatives}
    lists["pos"][3], lists["neg"][5] = [], []
    save(tmp_path, lists, "lists.parquet")
    readme = Path(__file__).parents[2].joinpath("README.md").read_text()
    block = readme.split("```python\n")[1].split("```")[0]
    assert "lists.parquet" in block
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    _, found = written(tmp_path / "pairs.parquet")
    assert dict(found.columns) == {
        **{"query": "query", "positive": "pos"},
        **{"negative": "neg", "group": "group"},
    }
    rows = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    assert len(rows) == 2 * 398  # one had no positives, one no negatives
    assert rows[1] == {
        **{"query": WORDS[0], "pos": OTHER[0].upper()},
        **{"neg": f"no {OTHER[0]}", "group": WORDS[0]},
    }


LISTED = [  # columns, whether they are refused, and the roles once what is said is done
    ({"query": WORDS, "pos": 2}, True, {"query": "query", "positive": "pos", "group": "group"}),
    (
        {"question": WORDS, "contexts": 2, "hard_negative": 3, "id": list(range(400))},
        True,
        {
            **{"query": "question", "positive": "contexts"},
            **{"negative": "hard_negative", "group": "group"},
        },
    ),
    (
        {"question": WORDS, "answers": 2, "doc_id": list(range(400))},
        True,
        {"query": "question", "positive": "answers", "group": "doc_id"},
    ),
    ({"queries": 2, "answer": OTHER}, True, {"query": "queries", "positive": "answer"}),
    (
        {"query": WORDS, "title": OTHER, "pos": 2},
        False,
        {"query": "query", "positive": "pos", "group": "group"},
    ),
    (
        {"query": WORDS, "positive": OTHER, "neg": 2},
        False,
        {"query": "query", "positive": "positive", "negative": "neg"},
    ),
]


@pytest.mark.parametrize(("columns", "refused", "roles"), LISTED)
def test_what_is_said_of_lists_makes_rows_that_are_told(
    tmp_path, monkeypatch, columns, refused, roles
):
    columns = {
        name: [[f"{name} {row} {each}" for each in range(held)] for row in range(400)]
        if isinstance(held, int)
        else held
        for name, held in columns.items()
    }
    file = save(tmp_path, columns, "lists.parquet")
    if refused:
        with pytest.raises(InputError) as caught:
            written(file)
        said = str(caught.value)
    else:
        said = next(note for note in written(file)[1].notes if "holds lists" in note)
    monkeypatch.chdir(tmp_path)
    exec(said[said.index("import pandas") :], {})
    spec, found = written(tmp_path / "pairs.parquet")
    assert dict(found.columns) == roles
    split = read_split(spec.datasets[0], EvalSpec())
    doubled = isinstance(columns[roles["query"]][0], list) or "group" in roles
    assert len(split.train) + len(split.heldout) == (800 if doubled else 400)


def test_a_glob_of_lists_is_led_to_readme(tmp_path):
    save(tmp_path, {"query": WORDS, "pos": [[text] for text in OTHER], "v": [[0.5]] * 400})
    with pytest.raises(InputError, match=r"; pos hold lists: .*\(README"):
        written(tmp_path / "*.parquet")


def test_lists_that_nobody_names_are_no_matter(tmp_path):
    columns = {"question": WORDS, "answer": OTHER, "tags": [["a"]] * 400}
    assert not any("lists" in note for note in written(save(tmp_path, columns))[1].notes)
    columns = {"query": WORDS, "positive": OTHER, "neg": [["a"]] * 400}
    _, found = written(save(tmp_path, columns), negative="-")
    assert not any("lists" in note for note in found.notes)


@pytest.mark.parametrize(
    ("group", "said"),
    [
        (np.arange(400) // 2 + 0.0, r"holds double.*rows\['group'\].astype\('Int64'\)"),
        (np.arange(400) / 2, "holds double.*a group is text or integers"),
        ([None, *np.arange(399.0)], "Int64.*1 of 400 rows looked at have none"),
        ([True, False] * 200, "holds bool"),
    ],
)
def test_a_group_that_cannot_be_read_is_told(tmp_path, group, said):
    file = save(tmp_path, {"question": WORDS, "answer": OTHER, "group": group})
    _, found = written(file)
    assert "group" not in found.columns
    assert re.search(f"'group' .*left out.*{said}|'group' {said}", found.notes[-1])
    with pytest.raises(InputError, match="'group' of .* holds .*text or integers: question, answ"):
        written(file, group="group")
    assert not any("'group'" in note for note in written(file, group="-")[1].notes)


def test_groups_that_rows_lack_are_told(tmp_path):
    group = pa.array([None, *range(399)], pa.int64())
    _, found = written(save(tmp_path, {"question": WORDS, "answer": OTHER, "group": group}))
    assert found.columns["group"] == "group"
    assert any("1 of 400 rows looked at have a blank 'group'" in note for note in found.notes)


@pytest.mark.parametrize(
    ("columns", "given"),
    [
        ({}, {}),
        ({}, {"positive": "label"}),
        ({"note": OTHER}, {"task": "classification"}),
    ],
)
def test_labels_that_are_numbers_are_told_how_to_be_texts(tmp_path, monkeypatch, columns, given):
    file = save(tmp_path, {"text": WORDS, "label": [0, 1, 2, 3] * 100, **columns})
    with pytest.raises(InputError, match="label.*labels are texts") as caught:
        written(file, **given)
    said = str(caught.value)
    monkeypatch.chdir(tmp_path)
    exec(said[said.index("import pandas") :], {})
    spec, found = written(tmp_path / "labelled.parquet")
    assert (found.task, found.columns["positive"]) == ("classification", "label")
    split = read_split(spec.datasets[0], EvalSpec())
    assert set(split.train.table["positive"].to_pylist()) < {f"name of {i}" for i in range(4)}


def test_too_few_different_positives_are_told(tmp_path):
    _, found = written(save(tmp_path, {"text": WORDS, "label": ["spam", "ham"] * 200}))
    assert any("2 different positives" in note and "eval_uri" in note for note in found.notes)


@pytest.mark.parametrize("bad", [None, " "])
def test_a_blank_text_is_named_by_its_file_and_row(tmp_path, bad):
    save(tmp_path, {"q": WORDS}, "0.parquet")
    save(tmp_path, {"q": [*WORDS[:7], bad, *WORDS[8:]]}, "1.parquet")
    with pytest.raises(
        InputError, match=r"'q' is null or blank in 1 row, first in row 7 of .*1\.p"
    ):
        draw_rows(str(tmp_path), {"query": "q"}, limit=10)
    assert len(draw_rows(str(tmp_path), {"query": "q"}, limit=10, may_lack=["query"]))


def test_views_of_strings_are_looked_at_as_strings(tmp_path):
    columns = {"question": WORDS, "answer": OTHER}
    views = {name: pa.array(texts).cast(pa.string_view()) for name, texts in columns.items()}
    file = save(tmp_path, pa.table(views))
    assert written(file)[0].datasets[0].query == "question"
    assert len(draw_rows(str(file), {"query": "question"}, limit=10))


DIFFERING = [  # what else the second file holds, and what is said of it
    ({"reply": OTHER}, "'answer' is not in .*1.parquet"),
    ({"answer": list(range(400))}, "'answer' holds text in .*0.parquet and integers in .*1.parq"),
    ({"answer": pa.nulls(400)}, "'answer' holds text in .*0.parquet and null in .*1.parquet"),
    ({"answer": [[text] for text in OTHER]}, "'answer' holds text in .*0.p.* and lists in .*1.p"),
]


@pytest.mark.parametrize(("columns", "said"), DIFFERING)
@pytest.mark.parametrize("given", [{}, {"positive": "answer"}])
def test_files_that_differ_are_named_with_the_column(tmp_path, columns, said, given):
    save(tmp_path, {"question": WORDS, "answer": OTHER}, "0.parquet")
    save(tmp_path, {"question": WORDS, **columns}, "1.parquet")
    with pytest.raises(InputError, match=f"{said}.*write the files alike"):
        written(tmp_path, **given)
    dataset = DatasetSpec(name="d", uri=str(tmp_path), query="question", positive="answer")
    with pytest.raises(InputError, match=r"column 'answer' .*1\.parquet"):  # nor does a run take it
        read_split(dataset, EvalSpec())


def test_columns_that_some_files_lack_are_left_out_and_told(tmp_path):
    save(tmp_path, {"question": WORDS, "answer": OTHER}, "0.parquet")
    extra = {"group": WORDS, "score": list(range(400))}
    save(tmp_path, {"question": WORDS, "answer": OTHER, **extra}, "1.parquet")
    _, found = written(tmp_path)
    assert dict(found.columns) == {"query": "question", "positive": "answer"}
    assert re.search("'group' is not in .*0.parquet; column 'score' is not", found.notes[1])


def test_files_that_hold_text_in_other_ways_are_alike(tmp_path):
    kinds = [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
    for number, kind in enumerate([*kinds, pa.dictionary(pa.int16(), pa.string())]):
        whole = [pa.int32(), pa.int64(), pa.uint64(), pa.int8()][number]
        columns = {
            "question": pa.array([f"{number} {text}" for text in WORDS[:100]]).cast(kind),
            "answer": pa.array(OTHER[:100]).cast(kind),
            "group": pa.array(range(100)).cast(whole),
        }
        save(tmp_path, pa.table(columns), f"{number}.parquet")
    spec, found = written(tmp_path)
    assert set(found.columns) == {"query", "positive", "group"}
    assert not any("differ" in note for note in found.notes)
    assert len(draw_rows(str(tmp_path), {"query": "question"}, limit=200)) >= 100
    split = read_split(spec.datasets[0], EvalSpec())
    assert len(split.train) + len(split.heldout) == 400


def test_of_many_files_some_are_opened(tmp_path):
    for number in range(40):
        save(tmp_path, {"q": [f"{number} {i}" for i in range(50)]}, f"{number:02}.parquet")
    seen = glance(str(tmp_path))
    assert not seen.exact and seen.rows == pytest.approx(2000, rel=0.1)


def test_an_arrow_stream_is_looked_at(tmp_path):
    table = pa.table({"question": WORDS, "answer": OTHER})
    file = tmp_path / "data.arrow"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=64)
    assert glance(str(file)).rows == 400
    spec, _ = written(file)
    assert spec.datasets[0].query == "question"


def test_too_few_rows_and_no_file_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no rows"):
        glance(str(save(tmp_path, {"q": pa.array([], pa.string())})))
    for rows, said in ((1, "one row"), (2, "two rows")):
        file = save(tmp_path, {"question": WORDS[:rows], "answer": OTHER[:rows]})
        with pytest.raises(InputError, match=f"holds {said}; expected at least 3"):
            glance(str(file))
        dataset = DatasetSpec(name="d", uri=str(file), query="question", positive="answer")
        with pytest.raises(InputError, match="nothing (is left )?to contrast"):
            read_split(dataset, EvalSpec())
    with pytest.raises(InputError, match="no file matches"):
        glance(str(tmp_path / "none.parquet"))
