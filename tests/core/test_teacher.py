import hashlib
import json
import os
import re

import numpy as np
import pytest

from b3_core import multimodal
from b3_core.config import TeacherSpec
from b3_core.errors import InputError
from b3_core.teacher import (
    BLOCK,
    Embeddings,
    Teacher,
    load_model,
    model_identity,
    shard_bounds,
    with_own_prompts,
)


def test_shards_are_whole_blocks_and_cover_every_row_once():
    for rows in (1, BLOCK - 1, BLOCK, 5 * BLOCK + 3):
        for shard_rows in (1, BLOCK, BLOCK + 1, 10**6):
            bounds = shard_bounds(rows, shard_rows)
            assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])]
            assert bounds[-1][1] == rows
            assert all(start % BLOCK == 0 for start, _ in bounds)
            assert all(stop - start >= min(shard_rows, rows) for start, stop in bounds[:-1])


@pytest.mark.parametrize("model", ["static", "minilm"])
def test_a_shard_has_the_bits_it_has_in_the_whole(model):
    rows = BLOCK + 40 if model == "minilm" else 3 * BLOCK + 7
    texts = [f"row {i} " + "word " * (i % 13) for i in range(rows)]
    teacher = Teacher(TeacherSpec(model=model))
    whole = teacher.encode(texts)
    parts = [teacher.encode(texts[a:b]) for a, b in shard_bounds(rows, BLOCK)]
    assert len(parts) > 1
    assert np.array_equal(whole, np.concatenate(parts))
    assert np.allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)


def test_teachers_know_what_is_alike():
    for model in ("static", "minilm"):
        a, b, c = Teacher(TeacherSpec(model=model)).encode(
            ["open a file for reading", "read the contents of a file", "the weather in Lisbon"]
        )
        assert a @ b > a @ c + 0.2


def test_prompts_and_length_count():
    plain = Teacher(TeacherSpec(model="minilm"))
    short = Teacher(TeacherSpec(model="minilm", max_length=4))
    text = ["one two three four five six seven"]
    assert not np.allclose(plain.encode(text), plain.encode(text, prompt="query: "))
    assert not np.allclose(plain.encode(text), short.encode(text))


@pytest.mark.parametrize(
    ("named", "query", "positive"),
    [
        ({}, "", ""),
        ({"query": "q: ", "passage": "p: "}, "q: ", "p: "),
        ({"query": "q: ", "document": "d: ", "corpus": "c: "}, "q: ", "d: "),
        ({"summary": "s: "}, "", ""),
    ],
)
def test_prompts_are_the_models_own_where_none_are_asked_for(tmp_path, named, query, positive):
    """Also with one that sentence-transformers would put before whatever has none."""
    model = Teacher(TeacherSpec(model="minilm")).model
    model.prompts, model.default_prompt_name = dict(named), next(iter(named), None)
    model.save(str(tmp_path / "model"))
    spec = TeacherSpec(model=str(tmp_path / "model"))
    teacher = Teacher(spec)
    filled = with_own_prompts(spec)
    assert (filled.query_prompt, filled.positive_prompt) == (query, positive)
    assert teacher.prompts(spec) == {"query": query, "positive": positive}
    asked = spec.model_copy(update={"query_prompt": "", "positive_prompt": "x: "})
    assert with_own_prompts(asked) == asked
    assert teacher.prompts(asked) == {"query": "", "positive": "x: "}
    plain = Teacher(TeacherSpec(model="minilm"))
    assert (teacher.encode(["a text"]) == plain.encode(["a text"])).all()


def test_identity_is_the_weights_not_the_path(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps({"x": 1}))
    a, b = (model_identity(str(tmp_path / folder), None) for folder in "ab")
    assert a == b
    (tmp_path / "b" / "config.json").write_text("{}")
    assert model_identity(str(tmp_path / "b"), None) != a
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ text }}")
    assert model_identity(str(tmp_path / "a"), None) != a
    assert model_identity("org/model", "0" * 40) == {"hub": "org/model", "revision": "0" * 40}


def test_weights_are_read_once_a_process_until_they_change(tmp_path, monkeypatch):
    """A plan asks for every dataset, arm and seed, and a large model takes minutes to read."""
    large, small = tmp_path / "model.safetensors", tmp_path / "config.json"
    small.write_text("{}")
    large.write_bytes(bytes(17 << 20))
    read = []
    digest = hashlib.file_digest

    def counted(stream, name):
        read.append(stream.name)
        return digest(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    first = model_identity(str(tmp_path), None)
    assert model_identity(str(tmp_path), None) == first
    assert read.count(str(large)) == 1
    found = [first]
    stat = large.stat()
    with large.open("r+b") as stream:  # as many bytes, and its times put back
        stream.write(b"1")
    os.utime(large, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    found.append(model_identity(str(tmp_path), None))
    other = tmp_path / "other"  # another file takes its place
    other.write_bytes(b"2" + bytes((17 << 20) - 1))
    other.replace(large)
    found.append(model_identity(str(tmp_path), None))
    small.write_text("[]")
    found.append(model_identity(str(tmp_path), None))
    assert len({each["weights"] for each in found}) == 4
    assert read.count(str(large)) == 3


@pytest.mark.parametrize("name", ["nothing", "org/model", "../up", "a/b/c"])
def test_a_model_that_is_not_there_or_not_pinned_is_refused(name):
    for call in (model_identity, lambda n, r: load_model(n, revision=r)):
        with pytest.raises(InputError, match=re.escape(repr(name))):
            call(name, "main")


def test_a_text_without_a_token_is_like_nothing_and_ends_nothing():
    """A student is judged among all positives: one of a million may be of unknown characters."""
    vectors = multimodal.unit(np.array([[0, 0], [3, 4], [np.nan, 1]], np.float32))
    assert vectors[:2].tolist() == pytest.approx(np.array([[0, 0], [0.6, 0.8]]))
    assert np.isnan(vectors[2]).all()


def test_vectors_of_wrong_norm_name_their_row():
    vectors = np.eye(3, dtype=np.float32)
    for value, shown in ((np.inf, "inf"), (np.nan, "nan"), (0.0, "0")):
        wrong = vectors.copy()
        wrong[1] = value
        with pytest.raises(InputError, match=f"query in row 1 has norm {shown}"):
            Embeddings(wrong, vectors)
    with pytest.raises(ValueError, match="differ"):
        Embeddings(vectors, vectors[:2])


def test_embeddings_survive_storage_as_float16(tmp_path):
    class Folder:
        def path(self, name):
            return tmp_path / name

    vectors = np.random.default_rng(0).normal(size=(2, 50, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    Embeddings(*vectors).save(Folder())
    back = Embeddings.load(Folder())
    assert back.query_ND.dtype == np.float32
    assert np.abs(back.positive_ND - vectors[1]).max() < 1e-3
    back.save(Folder())
    assert np.array_equal(Embeddings.load(Folder()).query_ND, back.query_ND)
