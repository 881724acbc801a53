"""Reading text columns: every way a user's file can be wrong, one clear line each."""

import math
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from huggingface_hub import constants as hub

from b3_core import formats, remote
from b3_core.errors import InputError, UnreachableError
from b3_core.source import read_rows, source_digest
from tests.conftest import use_s3
from tests.system.fault_proxy import FaultProxy

COLUMNS = {"query": "q", "positive": "a"}


def write(path: Path, *, row_group_size: int = 1000, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def refused(uri: Path | str, columns: dict[str, str] = COLUMNS) -> str:
    with pytest.raises(InputError) as caught:
        read_rows(str(uri), columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_reads_the_named_columns_under_their_roles(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", a=["A", "B"], q=["x", "y"], other=[1, 2])
    table = read_rows(str(file), COLUMNS)
    assert table.to_pydict() == {"query": ["x", "y"], "positive": ["A", "B"]}
    assert table.schema.types == [pa.string(), pa.string()]


def test_one_column_may_play_both_roles(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", q=["x", "y"])
    table = read_rows(str(file), {"query": "q", "positive": "q"})
    assert table.to_pydict() == {"query": ["x", "y"], "positive": ["x", "y"]}


@pytest.mark.parametrize(
    "kind",
    [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_every_kind_of_text_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array(["é", "b", "é"]).cast(kind)
    table = read_rows(str(write(tmp_path / "x.parquet", q=column, a=column)), COLUMNS)
    assert table["query"].to_pylist() == ["é", "b", "é"]


@pytest.mark.parametrize(
    "marks",
    [pa.array([7, 7, 3]), pa.array([7, 7, 3], pa.uint8()), pa.array([7, 7, 3]).dictionary_encode()],
    ids=lambda marks: str(marks.type),
)
def test_integer_groups_become_text(tmp_path: Path, marks: pa.Array) -> None:
    file = write(tmp_path / "x.parquet", q=list("xyz"), a=list("ABC"), g=marks)
    table = read_rows(str(file), {**COLUMNS, "group": "g"})
    assert table["group"].to_pylist() == ["7", "7", "3"]


def test_folder_and_glob_read_files_in_sorted_order(tmp_path: Path) -> None:
    write(tmp_path / "d/b.parquet", q=["2"], a=["B"])
    write(tmp_path / "d/a.parquet", q=["1"], a=["A"])
    write(tmp_path / "d/sub/c.parquet", q=["3"], a=["C"])
    write(tmp_path / "d/_metadata.parquet", q=["no"], a=["no"])
    write(tmp_path / "d/.hidden.parquet", q=["no"], a=["no"])
    (tmp_path / "d/README").write_text("no")
    assert read_rows(str(tmp_path / "d"), COLUMNS)["query"].to_pylist() == ["1", "2", "3"]
    glob = str(tmp_path / "d/[ab].parquet")
    assert read_rows(glob, COLUMNS)["query"].to_pylist() == ["1", "2"]


def test_hidden_folders_hold_no_rows_unless_they_are_named(tmp_path: Path) -> None:
    """A store, what Spark has not committed yet, and Delta's log of what is in a table."""
    write(tmp_path / ".d/_year=1/a.parquet", q=["1"], a=["A"])
    for hidden in (".b3/pairs/x.parquet", "_temporary/0/y.parquet", "_year=1/_delta_log/z.parquet"):
        write(tmp_path / ".d" / hidden, q=["no"], a=["no"])
    for uri in (".d", ".d/**", ".d/*/*.parquet", ".d/**/*.parquet"):
        assert read_rows(str(tmp_path / uri), COLUMNS)["query"].to_pylist() == ["1"], uri
    for uri in (".d/_temporary", ".d/_temp*/**", ".d/**/_delta_log/*"):
        assert read_rows(str(tmp_path / uri), COLUMNS)["query"].to_pylist() == ["no"], uri


def test_a_file_may_look_like_a_glob(tmp_path: Path) -> None:
    file = write(tmp_path / "x[1].parquet", q=["1"], a=["A"])
    assert read_rows(str(file), COLUMNS)["query"].to_pylist() == ["1"]


@pytest.mark.parametrize("name", ["gone.parquet", "gone-*.parquet"])
def test_no_such_file(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path / name) == (
        f"no file matches {tmp_path / name}; expected a parquet, Arrow or tar file, a folder of "
        "such files, or a glob; check the path"
    )
    with pytest.raises(InputError, match="no file matches"):
        source_digest(str(tmp_path / name))


def test_folder_without_parquet(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("q,a")
    assert refused(tmp_path).startswith(f"no file matches {tmp_path};")


def test_unknown_scheme() -> None:
    assert refused("nosuch://bucket/x").startswith("nosuch://bucket/x cannot be opened: Protocol")


def test_the_hub_is_not_asked_while_it_is_said_to_be_offline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    said = refused("hf://datasets/org/data")
    assert "hf://datasets/org/data is on the Hugging Face hub" in said
    assert "set HF_HUB_OFFLINE=0" in said


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
    [([1.5], "double"), ([1], "int64"), ([b"x"], "binary")],
)
def test_column_that_is_no_text(tmp_path: Path, values: list[object], kind: str) -> None:
    file = write(tmp_path / "x.parquet", q=values, a=["A"])
    assert refused(file) == (
        f"column 'q' of {file} holds {kind}; expected text; "
        "convert it, or set 'query' of the dataset to another column"
    )


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.string())], ids=str)
def test_a_column_of_lists_says_how_to_write_rows(tmp_path: Path, kind: pa.DataType) -> None:
    file = write(tmp_path / "x.parquet", q=["x"], a=pa.array([["A", "B"]], kind))
    told = refused(file)
    assert told.startswith(f"column 'a' of {file} holds ")
    assert "expected text; write one row for each value of a list" in told


def test_group_must_be_text_or_integers(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", q=["x"], a=["A"], g=[1.0])
    assert "holds double; expected text or integers" in refused(file, {**COLUMNS, "group": "g"})


@pytest.mark.parametrize(
    "blank", [None, "", " \t\n\u00a0", "\u200b\ufeff", "\ufffd\u00ad", "\u0301"]
)
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
        table = read_rows("memory://b3-source", COLUMNS)
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


class Bucket:
    """A bucket behind a proxy that breaks and counts requests; ``direct`` goes round it."""

    def __init__(self, uri: str, proxy: FaultProxy, direct: s3fs.S3FileSystem) -> None:
        self.uri, self.proxy, self.direct = uri, proxy, direct

    def put(self, file: Path, name: str) -> str:
        self.direct.put_file(str(file), f"{self.uri}/{name}")
        return f"{self.uri}/{name}"


@pytest.fixture
def bucket(s3_server: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0)
    direct = s3fs.S3FileSystem(endpoint_url=s3_server, use_listings_cache=False)
    with FaultProxy(s3_server) as proxy:
        use_s3(monkeypatch, proxy.url)
        yield Bucket(s3_bucket, proxy, direct)


def test_a_bucket_is_read_like_a_folder(tmp_path: Path, bucket: Bucket) -> None:
    names = ["b.parquet", "a.parquet", "sub/c.parquet", "sub/deep/d.parquet", "sub/_x.parquet"]
    names += [".b3/pairs/e.parquet", "sub/_temporary/0/f.parquet"]
    for place, name in enumerate([*names, "sub/.y.parquet", "readme"]):
        bucket.put(write(tmp_path / "d" / name, q=[str(place)], a=[name]), f"d/{name}")
    bucket.direct.pipe_file(f"{bucket.uri}/d/", b"")  # stands for the folder, as some tools write
    patterns = ["d", "d/a.parquet", "d/*.parquet", "d/[ab].*", "d/*/c.parquet", "d/s?b/**", "*/b.*"]
    for pattern in patterns:
        local, there = f"{tmp_path}/{pattern}", f"{bucket.uri}/{pattern}"
        assert read_rows(there, COLUMNS) == read_rows(local, COLUMNS), pattern
        assert source_digest(there) == source_digest(there)
    for nothing in ("no/*.parquet", "d/*/e.parquet", "no"):
        assert refused(f"{bucket.uri}/{nothing}").startswith(f"no file matches {bucket.uri}/")


def test_a_large_file_in_a_bucket_is_read_in_few_requests(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK", 64 << 10)
    monkeypatch.setattr(formats, "_STREAMED", 16 << 10)
    monkeypatch.setattr(formats, "_BATCH_ROWS", 1000)  # columns are read by turns
    asked = []
    whole = remote.Remote.cat_file

    def cat_file(self: remote.Remote, stored: str, start: int, end: int) -> bytes:
        asked.append(end - start)
        return whole(self, stored, start, end)

    monkeypatch.setattr(remote.Remote, "cat_file", cat_file)
    held = []
    plain = remote.Ranged.read

    def read(self: remote.Ranged, size: int = -1) -> bytes:
        held.append(size)
        return plain(self, size)

    monkeypatch.setattr(remote.Ranged, "read", read)
    texts = [f"{i * 7919 % 10_007} {i}" for i in range(40_000)]
    for name, rows in (("many groups", 200), ("one group", 40_000)):
        file = tmp_path / f"{name}.parquet"
        table = pa.table({"q": texts, "a": texts[::-1]})
        pq.write_table(table, file, row_group_size=rows, data_page_size=8 << 10)
        uri = bucket.put(file, file.name)
        asked.clear()
        held.clear()
        bucket.proxy.plan("", "")
        assert read_rows(uri, COLUMNS)["positive"].to_pylist() == texts[::-1]
        blocks = math.ceil(file.stat().st_size / remote.BLOCK)
        assert blocks > remote.BLOCKS  # the file is larger than what memory holds of it
        assert bucket.proxy.seen["get"] == len(asked) <= blocks + 4  # about once each
        assert max(asked) <= remote.BLOCK
        assert max(held) < file.stat().st_size / 2  # no two columns, nor all of one
        assert bucket.proxy.seen["head"] <= 3


def test_a_column_that_is_not_asked_for_is_not_fetched(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK", 64 << 10)
    noise = [f"{i * 2654435761 % 2**64:x}" * 4 for i in range(40_000)]
    file = write(tmp_path / "x.parquet", row_group_size=40_000, q=["x"] * 40_000, other=noise)
    uri = bucket.put(file, file.name)
    bucket.proxy.plan("", "")
    assert len(read_rows(uri, {"query": "q", "positive": "q"})) == 40_000
    assert bucket.proxy.seen["get"] <= 4 < file.stat().st_size / remote.BLOCK


@pytest.mark.parametrize(  # all: test_faults
    "fault", ["503", pytest.param("short", marks=pytest.mark.slow)]
)
def test_a_fault_on_the_way_to_a_dataset_changes_nothing(
    tmp_path: Path, bucket: Bucket, fault: str
) -> None:
    file = write(tmp_path / "d/x.parquet", q=list("xyz"), a=list("ABC"))
    bucket.put(file, "d/x.parquet")
    kinds = ["get"] if fault == "short" else ["get", "head", "list"]
    times = 2 if fault == "reset" else 1  # aiohttp sends again by itself what got no answer
    for uri in (f"{bucket.uri}/d", f"{bucket.uri}/d/*.parquet"):
        digest = source_digest(uri)
        for kind in kinds:
            bucket.proxy.plan(kind, fault, times=times)
            assert read_rows(uri, COLUMNS) == read_rows(str(file), COLUMNS)
            assert bucket.proxy.injected == times
            if kind != "get":
                bucket.proxy.plan(kind, fault, times=times)
                assert source_digest(uri) == digest
                assert bucket.proxy.injected == times


@pytest.mark.parametrize(
    "name",
    [
        "d",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("d/**", "d/*.parquet", "d/*/*.parquet")
        ),
    ],
)
def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(
    tmp_path: Path, bucket: Bucket, name: str
) -> None:
    for place in ("d/x.parquet", "d/sub/x.parquet"):
        bucket.put(write(tmp_path / "x.parquet", q=["x"], a=["A"]), place)
    bucket.proxy.plan("", "")
    rows = len(read_rows(f"{bucket.uri}/{name}", COLUMNS))
    for nth in range(1, bucket.proxy.seen["list"] + 1):
        bucket.proxy.plan("list", "503", nth=nth, times=99)
        with pytest.raises(UnreachableError, match="failed 6 times"):
            read_rows(f"{bucket.uri}/{name}", COLUMNS)
        bucket.proxy.plan("list", "503", nth=nth)
        assert len(read_rows(f"{bucket.uri}/{name}", COLUMNS)) == rows


def test_a_server_that_stays_silent_is_not_a_bad_file(tmp_path: Path, bucket: Bucket) -> None:
    uri = bucket.put(write(tmp_path / "x.parquet", q=["x"], a=["A"]), "x.parquet")
    bucket.proxy.plan("get", "503", times=99)
    with pytest.raises(UnreachableError, match="failed 6 times"):
        read_rows(uri, COLUMNS)
    assert bucket.proxy.injected == remote.ATTEMPTS


@pytest.mark.parametrize("kind", ["get", "head", "list"])
def test_a_file_that_may_not_be_read_is_one_line(tmp_path: Path, bucket: Bucket, kind: str) -> None:
    bucket.put(write(tmp_path / "x.parquet", q=["x"], a=["A"]), "d/x.parquet")
    bucket.proxy.plan(kind, "403", times=99)
    message = refused(f"{bucket.uri}/d")
    verb = {"get": "read", "head": "look at", "list": "look at"}[kind]
    assert f"the server refused to {verb} {bucket.uri}/d" in message
    assert "planned AccessDenied; expected" in message or "Forbidden; expected" in message
    assert message.endswith("AWS_* environment")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://KEY:hunter2@bucket/x.parquet",
        "https://me:hunter2@host/x.parquet",
        "https://host/x.parquet?X-Amz-Signature=hunter2",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    message = refused(uri)
    assert "carries credentials" in message and "hunter2" not in message


@pytest.mark.parametrize(
    "change",
    [
        "other rows",
        "removed",
        *(pytest.param(change, marks=pytest.mark.slow) for change in ("shorter", "longer")),
    ],
)
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(remote, "BLOCK", 16 << 10)
    rows = {"other rows": 40_000, "shorter": 9_000, "longer": 60_000, "removed": 1}[change]
    before, other = (
        write(tmp_path / f"{start}.parquet", q=texts, a=texts)
        for start, n in ((10_000, 40_000), (100_000, rows))
        for texts in [[f"{i * 7919 % 99_991} {i}" for i in range(start, start + n)]]
    )
    uri = bucket.put(before, "x.parquet")
    reads = []
    whole = remote.Remote.cat_file

    def cat_file(self: object, *at: object, **range_: object) -> bytes:
        reads.append(1)
        if len(reads) == 3:
            if change == "removed":
                bucket.direct.rm_file(uri)
            else:
                bucket.put(other, "x.parquet")
        return whole(self, *at, **range_)

    monkeypatch.setattr(remote.Remote, "cat_file", cat_file)
    said = "was removed" if change == "removed" else "was changed"
    assert f"x.parquet {said} while it was read; expected a file that stays" in refused(uri)
