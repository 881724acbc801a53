"""Text columns out of parquet files, local or in a bucket, with errors a person can act on.

    uri -> sorted files -> bounded record batches -> checked text columns

A file's footer and its compressed size say nothing about what it inflates to, so files are read
batch by batch and only the columns that are needed.
"""

import contextlib
import glob
import hashlib
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from b3_core.artifacts import canonical_json
from b3_core.errors import InputError, reason

_BATCH_ROWS = 16_384
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
            with _one_line_errors(file), fs.open(file, "rb") as stream:
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
    for file in files:
        start = 0
        with _one_line_errors(file), fs.open(file, "rb") as stream, pq.ParquetFile(stream) as data:
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
    try:
        fs, path = fsspec.core.url_to_fs(uri)
        fs.invalidate_cache()  # listings are cached, and files change
        found = _matching(fs, path)
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
        found = fs.glob(path, detail=True) if glob.has_magic(path) else {}
        return {file: info for file, info in found.items() if info["type"] != "directory"}
    if info["type"] != "directory":
        return {path: info}
    return {
        file: info
        for file, info in fs.find(path, detail=True).items()
        # Writers leave files such as _metadata and .part-0.parquet beside the data.
        if file.endswith(".parquet") and not posixpath.basename(file).startswith(("_", "."))
    }


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
def _one_line_errors(file: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{file} cannot be read: {reason(error)}",
            expected="a parquet file",
            remedy="write it again, or leave it out of uri",
        ) from error
