"""Reading text columns: every way a user's file can be wrong, one clear line each."""

from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from b3_core.errors import InputError
from b3_core.source import read_texts, source_digest

COLUMNS = {"query": "q", "positive": "a"}


def write(path: Path, *, row_group_size: int = 1000, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def refused(uri: Path | str, columns: dict[str, str] = COLUMNS) -> str:
    with pytest.raises(InputError) as caught:
        read_texts(str(uri), columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_reads_the_named_columns_under_their_roles(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", a=["A", "B"], q=["x", "y"], other=[1, 2])
    table = read_texts(str(file), COLUMNS)
    assert table.to_pydict() == {"query": ["x", "y"], "positive": ["A", "B"]}
    assert table.schema.types == [pa.string(), pa.string()]


def test_one_column_may_play_both_roles(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", q=["x", "y"])
    table = read_texts(str(file), {"query": "q", "positive": "q"})
    assert table.to_pydict() == {"query": ["x", "y"], "positive": ["x", "y"]}


@pytest.mark.parametrize(
    "kind",
    [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_every_kind_of_text_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array(["é", "b", "é"]).cast(kind)
    table = read_texts(str(write(tmp_path / "x.parquet", q=column, a=column)), COLUMNS)
    assert table["query"].to_pylist() == ["é", "b", "é"]


@pytest.mark.parametrize(
    "marks",
    [pa.array([7, 7, 3]), pa.array([7, 7, 3], pa.uint8()), pa.array([7, 7, 3]).dictionary_encode()],
    ids=lambda marks: str(marks.type),
)
def test_integer_groups_become_text(tmp_path: Path, marks: pa.Array) -> None:
    file = write(tmp_path / "x.parquet", q=list("xyz"), a=list("ABC"), g=marks)
    table = read_texts(str(file), {**COLUMNS, "group": "g"})
    assert table["group"].to_pylist() == ["7", "7", "3"]


def test_folder_and_glob_read_files_in_sorted_order(tmp_path: Path) -> None:
    write(tmp_path / "d/b.parquet", q=["2"], a=["B"])
    write(tmp_path / "d/a.parquet", q=["1"], a=["A"])
    write(tmp_path / "d/sub/c.parquet", q=["3"], a=["C"])
    write(tmp_path / "d/_metadata.parquet", q=["no"], a=["no"])
    write(tmp_path / "d/.hidden.parquet", q=["no"], a=["no"])
    (tmp_path / "d/README").write_text("no")
    assert read_texts(str(tmp_path / "d"), COLUMNS)["query"].to_pylist() == ["1", "2", "3"]
    glob = str(tmp_path / "d/[ab].parquet")
    assert read_texts(glob, COLUMNS)["query"].to_pylist() == ["1", "2"]


def test_a_file_may_look_like_a_glob(tmp_path: Path) -> None:
    file = write(tmp_path / "x[1].parquet", q=["1"], a=["A"])
    assert read_texts(str(file), COLUMNS)["query"].to_pylist() == ["1"]


@pytest.mark.parametrize("name", ["gone.parquet", "gone-*.parquet"])
def test_no_such_file(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path / name) == (
        f"no file matches {tmp_path / name}; expected a parquet file, a folder of *.parquet files, "
        "or a glob; check the path"
    )
    with pytest.raises(InputError, match="no file matches"):
        source_digest(str(tmp_path / name))


def test_folder_without_parquet(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("q,a")
    assert refused(tmp_path).startswith(f"no file matches {tmp_path};")


def test_unknown_scheme() -> None:
    assert refused("nosuch://bucket/x").startswith("nosuch://bucket/x cannot be opened: Protocol")


def test_missing_column_names_the_nearest(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", question=["x"], answer=["A"])
    assert refused(file, {"query": "qestion", "positive": "answer"}) == (
        f"column 'qestion' is not in {file}; expected one of: question, answer; "
        "did you mean 'question'?"
    )
    assert refused(file, {"query": "question", "positive": "zzz"}).endswith(
        "one of: question, answer; set 'positive' of the dataset to another column"
    )


def test_a_wide_file_is_not_listed_whole(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", **{f"c{i}": ["x"] for i in range(30)})
    assert "c18, c19, ...; set" in refused(file)


def test_column_twice(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    twice = pa.Table.from_arrays([pa.array(["x"])] * 3, names=["q", "q", "a"])
    pq.write_table(twice, file)
    assert refused(file) == (
        f"column 'q' is twice in {file}; expected one of: q, q, a; "
        "set 'query' of the dataset to another column"
    )


@pytest.mark.parametrize(
    ("values", "kind"),
    [([1.5], "double"), ([1], "int64"), ([b"x"], "binary"), ([["x"]], "list<element: string>")],
)
def test_column_that_is_no_text(tmp_path: Path, values: list[object], kind: str) -> None:
    file = write(tmp_path / "x.parquet", q=values, a=["A"])
    assert refused(file) == (
        f"column 'q' of {file} holds {kind}; expected text; "
        "convert it, or set 'query' of the dataset to another column"
    )


def test_group_must_be_text_or_integers(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", q=["x"], a=["A"], g=[1.0])
    assert "holds double; expected text or integers" in refused(file, {**COLUMNS, "group": "g"})


@pytest.mark.parametrize("blank", [None, "", " \t\n\u00a0"])
def test_blank_texts_are_counted_and_the_first_is_named(tmp_path: Path, blank: str | None) -> None:
    write(tmp_path / "1.parquet", q=["x"] * 3, a=["A"] * 3)
    second = write(
        tmp_path / "2.parquet", q=["x"] * 4, a=["A", "B", blank, blank], row_group_size=2
    )
    write(tmp_path / "3.parquet", q=["x"] * 2, a=["A", blank])
    assert refused(tmp_path) == (
        f"column 'a' is null or blank in 3 rows, first in row 2 of {second} (counting from 0); "
        "expected a value in every row; fill or remove such rows"
    )


def test_a_single_null_group(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", q=list("xy"), a=list("AB"), g=[1, None])
    assert refused(file, {**COLUMNS, "group": "g"}).startswith(
        f"column 'g' is null or blank in 1 row, first in row 1 of {file}"
    )


def test_the_row_number_counts_over_batches(tmp_path: Path) -> None:
    texts = ["x"] * 40_000
    file = write(
        tmp_path / "x.parquet", q=[*texts, ""], a=[*texts, "A"], row_group_size=len(texts) + 1
    )
    assert f"row 40000 of {file}" in refused(file)


@pytest.mark.parametrize("content", [b"", b"q,a\nx,A\n" * 10, b"PAR1" + bytes(40) + b"PAR1"])
def test_not_a_parquet_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.parquet"
    file.write_bytes(content)
    message = refused(file)
    assert message.startswith(f"{file} cannot be read: ")
    assert message.endswith("; expected a parquet file; write it again, or leave it out of uri")


def test_truncated_parquet_file(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", q=["x"] * 100, a=["A"] * 100)
    whole = file.read_bytes()
    file.write_bytes(whole[:8] + bytes(len(whole) - 300) + whole[-292:])
    assert refused(file).startswith(f"{file} cannot be read: ")


def test_text_that_is_no_utf8(tmp_path: Path) -> None:
    offsets, data = pa.py_buffer(b"\0\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb")
    bad = pa.Array.from_buffers(pa.string(), 1, [None, offsets, data])
    file = write(tmp_path / "x.parquet", q=bad, a=["A"])
    assert "UTF8" in refused(file)


def test_no_rows(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", q=pa.array([], pa.string()), a=pa.array([], pa.string()))
    assert refused(file) == (
        f"{file} holds no rows; expected at least two rows; check how the file was written"
    )


def test_digest_follows_content_and_names_not_place(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write(tmp_path / folder / "x.parquet", q=["x"], a=["A"])
        write(tmp_path / folder / "y.parquet", q=["y"], a=["B"])
    digest = source_digest(str(tmp_path / "one"))
    assert len(digest) == 64
    assert source_digest(str(tmp_path / "two")) == digest
    assert source_digest(str(tmp_path / "two/*.parquet")) == digest
    (tmp_path / "two/y.parquet").rename(tmp_path / "two/z.parquet")
    renamed = source_digest(str(tmp_path / "two"))
    write(tmp_path / "two/z.parquet", q=["y"], a=["C"])
    changed = source_digest(str(tmp_path / "two"))
    assert len({digest, renamed, changed}) == 3


def test_other_file_systems_are_read_and_noticed() -> None:
    fs = fsspec.filesystem("memory")
    for answer in ("A", "B"):
        with fs.open("/b3-source/x.parquet", "wb") as stream:
            pq.write_table(pa.table({"q": ["x"], "a": [answer]}), stream)
        table = read_texts("memory://b3-source", COLUMNS)
        assert table["positive"].to_pylist() == [answer]
        if answer == "A":
            first = source_digest("memory://b3-source")
    assert source_digest("memory://b3-source") != first


def test_etags_stand_for_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.parquet", q=["x"], a=["A"])
    fs = fsspec.filesystem("file")
    plain = fs.info

    def with_etag(tag: str) -> str:
        monkeypatch.setattr(type(fs), "info", lambda _, path: {**plain(path), "ETag": tag})
        return source_digest(str(tmp_path / "x.parquet"))

    def unread(*_: object, **__: object) -> None:
        raise AssertionError("a file with an ETag was read")

    monkeypatch.setattr(type(fs), "_open", unread)
    assert with_etag("e1") == with_etag("e1") != with_etag("e2")


def test_listings_are_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.parquet", q=["x"], a=["A"])
    kind = type(fsspec.filesystem("file"))
    forgotten: list[object] = []
    monkeypatch.setattr(kind, "invalidate_cache", lambda *_: forgotten.append(1))
    plain = kind.info

    def info(self: object, path: str) -> object:
        assert forgotten
        return plain(self, path)

    monkeypatch.setattr(kind, "info", info)
    source_digest(str(tmp_path))
