"""Text columns out of parquet files, local or in a bucket, with errors a person can act on.

    uri -> sorted files -> bounded record batches -> checked text columns

A file's footer and its compressed size say nothing about what it inflates to, so files are read
batch by batch and only the columns that are needed. In a bucket they are read by ranges, with the
patience of :mod:`b3_core.remote`, and each must be at the end what it was when it was listed.
"""

import contextlib
import glob
import hashlib
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.utils import glob_translate

from b3_core.artifacts import canonical_json
from b3_core.errors import InputError, RefusedError, UnreachableError, reason
from b3_core.remote import Remote, ShortTransferError, open_fs

_BATCH_ROWS = 16_384
_STREAMED = 1 << 20  # bytes of a column that are asked for at once, so that none is held whole
_COLUMNS_NAMED = 20  # of a wide file, in an error message


def source_digest(uri: str) -> str:
    """Say what a dataset's files are now, so that a change is noticed.

    Returns
    -------
    str
        Hex sha256 over the sorted files' names below their common folder, with their sha256, or
        with size and ETag where the file system tells an ETag (S3: nothing is downloaded).

    Raises
    ------
    InputError
        There is no such file, or it cannot be read.
    """
    fs, files = _list_files(uri)
    base = posixpath.commonpath([posixpath.dirname(file) for file in files])
    digest = hashlib.sha256()
    for file, info in files.items():
        if info.get("ETag"):
            content = f"{info['size']} {info['ETag']}"
        else:
            with _opened(fs, file, info) as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
        line = f"{posixpath.relpath(file, base)}\0{content}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def source_listing(uri: str) -> str:
    """Say what a dataset's files look like, without reading any.

    Returns
    -------
    str
        Hex sha256 over names, sizes and ETags or times of change. Files whose listing is the same
        are taken for unchanged; where it differs the content may still be the same.

    Raises
    ------
    InputError
        There is no such file.
    """
    _, files = _list_files(uri)
    looks = [
        (file, info["size"], str(info.get("ETag") or info.get("mtime")), info.get("ino"))
        for file, info in files.items()
    ]
    return hashlib.sha256(canonical_json(looks)).hexdigest()


def read_texts(uri: str, columns: Mapping[str, str]) -> pa.Table:
    """Read text columns, files in sorted order, every value present and not blank.

    Parameters
    ----------
    uri
        Parquet file, folder or glob; local path or any fsspec URI.
    columns
        What a column is called in the result -> in the files. A column called ``group`` may hold
        integers, which become text.

    Returns
    -------
    pa.Table
        One string column for each entry of ``columns``; one row or more.

    Raises
    ------
    InputError
        No file, no parquet, no such column, no text, a null or blank value, or no row.
    """
    fs, files = _list_files(uri)
    schema = pa.schema([(role, pa.string()) for role in columns])
    blanks = {role: _Blanks(name) for role, name in columns.items()}
    batches = []
    # By default pyarrow fetches these columns of all row groups before it gives out a row.
    streamed = {"buffer_size": _STREAMED, "pre_buffer": False} if isinstance(fs, Remote) else {}
    for file, info in files.items():
        start = 0
        with (
            _opened(fs, file, info) as stream,
            pq.ParquetFile(stream, **streamed) as data,
        ):
            _check_columns(data.schema_arrow, columns, file)
            for batch in data.iter_batches(_BATCH_ROWS, columns=list(columns.values())):
                texts = [_as_text(batch.column(name)) for name in columns.values()]
                batches.append(pa.RecordBatch.from_arrays(texts, schema=schema))
                for blank, text in zip(blanks.values(), texts, strict=True):
                    blank.look(text, file, start)
                start += len(batch)
    for blank in blanks.values():
        blank.refuse()
    table = pa.Table.from_batches(batches, schema=schema)
    if not len(table):
        raise InputError(
            f"{uri} holds no rows",
            expected="at least two rows",
            remedy="check how the file was written",
        )
    return table


@dataclass
class _Blanks:
    """How many values of a column are null or blank, and where the first one is."""

    column: str
    count: int = 0
    first: str = ""

    def look(self, text: pa.Array, file: str, start: int) -> None:
        """Look through one batch, whose first row is row ``start`` of ``file``."""
        blank = pc.equal(pc.utf8_trim_whitespace(text.fill_null("")), "")
        found = blank.true_count
        if found and not self.count:
            self.first = f"row {start + blank.index(True).as_py()} of {file} (counting from 0)"
        self.count += found

    def refuse(self) -> None:
        """Raise if there was any."""
        if self.count:
            rows = "1 row" if self.count == 1 else f"{self.count} rows"
            raise InputError(
                f"column {self.column!r} is null or blank in {rows}, first in {self.first}",
                expected="a value in every row",
                remedy="fill or remove such rows",
            )


def _list_files(uri: str) -> tuple[Any, dict[str, dict[str, Any]]]:
    """Return the file system, and path -> fsspec's info of every file, sorted by path."""
    if uri.startswith("s3") and "@" in uri.partition("://")[2].split("/", 1)[0]:
        raise InputError(
            "uri of a dataset carries credentials",
            expected="s3://bucket/path",
            remedy="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead",
        )
    try:
        fs, path = open_fs(uri)
        fs.invalidate_cache()  # listings are cached, and files change
        found = _matching(fs, path)
    except UnreachableError:
        raise
    except Exception as error:  # botocore, aiohttp, fsspec and the OS each have their own
        raise InputError(
            f"{uri} cannot be opened: {reason(error)}",
            expected="a parquet file, folder or glob: a local path or s3://",
            remedy="check the path, its permissions and, for s3://, the AWS_* environment",
        ) from error
    if not found:
        raise InputError(
            f"no file matches {uri}",
            expected="a parquet file, a folder of *.parquet files, or a glob",
            remedy="check the path",
        )
    return fs, dict(sorted(found.items()))


def _matching(fs: Any, path: str) -> dict[str, dict[str, Any]]:
    try:
        info = fs.info(path)
    except FileNotFoundError:
        found = _glob(fs, path) if glob.has_magic(path) else {}
        return {file: info for file, info in found.items() if info["type"] != "directory"}
    if info["type"] != "directory":
        return {path: info}
    return {
        file: info
        for file, info in fs.find(path, detail=True).items()
        # Writers leave files such as _metadata and .part-0.parquet beside the data.
        if file.endswith(".parquet") and not posixpath.basename(file).startswith(("_", "."))
    }


def _glob(fs: Any, pattern: str) -> dict[str, dict[str, Any]]:
    """Return what matches a pattern: path -> fsspec's info.

    fsspec's own glob takes a folder that it fails to list for an empty one: rows would be missing,
    and nobody would know.
    """
    if not isinstance(fs, Remote):
        found: dict[str, dict[str, Any]] = fs.glob(pattern, detail=True)
        return found
    root = re.split(r"[*?[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    matches = re.compile(glob_translate(pattern)).match
    if "**" in pattern:
        below = fs.find(root, detail=True)
        return {path: info for path, info in below.items() if matches(path)}
    level = [{"name": root, "type": "directory"}]
    for _ in range(pattern.count("/") - root.count("/")):
        folders = [info["name"].rstrip("/") for info in level if info["type"] == "directory"]
        level = [info for folder in folders for info in _listed(fs, folder)]
    return {info["name"]: info for info in level if matches(info["name"])}


def _listed(fs: Remote, folder: str) -> list[dict[str, Any]]:
    """Return what is in a folder, without the object that stands for it in some buckets."""
    try:
        inside = fs.ls(folder, detail=True)
    except FileNotFoundError:
        return []
    return [info for info in inside if info["name"].rstrip("/") != folder]


def _check_columns(schema: pa.Schema, columns: Mapping[str, str], file: str) -> None:
    for role, name in columns.items():
        if schema.names.count(name) != 1:
            twice = name in schema.names
            near = get_close_matches(name, schema.names, n=1)
            more = ", ..." if len(schema.names) > _COLUMNS_NAMED else ""
            raise InputError(
                f"column {name!r} is {'twice' if twice else 'not'} in {file}",
                expected=f"one of: {', '.join(schema.names[:_COLUMNS_NAMED])}{more}",
                remedy=f"did you mean {near[0]!r}?"
                if near and not twice
                else f"set '{role}' of the dataset to another column",
            )
        kind = schema.field(name).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (_is_text(value) or (role == "group" and pa.types.is_integer(value))):
            raise InputError(
                f"column {name!r} of {file} holds {kind}",
                expected="text or integers" if role == "group" else "text",
                remedy=f"convert it, or set '{role}' of the dataset to another column",
            )


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def _as_text(column: pa.Array) -> pa.Array:
    text = column.cast(pa.string())
    text.validate(full=True)  # nobody has looked at the bytes yet: they may be no UTF-8
    return text


@contextlib.contextmanager
def _opened(fs: Any, file: str, info: Mapping[str, Any]) -> Iterator[Any]:
    """Open a file to read; what goes wrong with it until it is closed is one line."""
    remote = isinstance(fs, Remote) and info.get("size") is not None
    try:
        with fs.open_blocks(file, info["size"]) if remote else fs.open(file, "rb") as stream:
            yield stream
        if remote:
            _check_unchanged(fs, file, info)
    except (pa.ArrowException, OSError) as error:
        # Parts of two files can look like anything; a server that is silent need not be asked.
        silent = isinstance(error, UnreachableError)
        if remote and (not silent or isinstance(error.__cause__, ShortTransferError)):
            _check_unchanged(fs, file, info)
        if silent:
            raise
        if isinstance(error, RefusedError):
            raise InputError(
                error.problem, expected="a file that may be read", remedy=error.remedy
            ) from error
        raise InputError(
            f"{file} cannot be read: {reason(error)}",
            expected="a parquet file",
            remedy="write it again, or leave it out of uri",
        ) from error


def _check_unchanged(fs: Remote, file: str, before: Mapping[str, Any]) -> None:
    """Refuse what was put together from parts of several versions of a file."""
    try:
        now = fs.info(file)
    except FileNotFoundError:
        now = {}
    if _version(now) != _version(before):
        raise InputError(
            f"{file} {'was changed' if now else 'was removed'} while it was read",
            expected="a file that stays as it is",
            remedy="run the same command again when it has been written",
        )


def _version(info: Mapping[str, Any]) -> tuple[object, str]:
    return info.get("size"), str(info.get("ETag", "")).strip('"')
