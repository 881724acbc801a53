"""Files of rows as bounded record batches, whichever format they are in.

    open file -> Parquet | Arrow (as Hugging Face saves a dataset) | tar (webdataset) -> Rows

A file's footer and its compressed size say nothing about what it inflates to, so files are read
batch by batch, and only the columns that are needed.
"""

import json
import posixpath
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from b3_core.errors import InputError

_BATCH_ROWS = 16_384
_STREAMED = 1 << 20  # bytes of a column that are asked for at once, so that none is held whole
_TEXT_BYTES = 16 << 20  # of a member of a tar that is read as text

#: Where a member of a tar lies in it, as a column of media has it.
MEMBER = pa.struct([("start", pa.int64()), ("size", pa.int64())])


@dataclass(frozen=True)
class Rows:
    """What a file holds."""

    schema: pa.Schema
    batches: Callable[[Sequence[str]], Iterator[pa.RecordBatch]]
    """Reads the columns named, which are in ``schema``."""
    count: int | None = None
    """How many rows, by what the file says of itself; None where it does not."""


def open_rows_of(stream: Any, file: str, *, remote: bool) -> AbstractContextManager[Rows]:
    """Open a file of rows by what its name ends with; parquet if that says nothing.

    Raises
    ------
    pyarrow.ArrowException, OSError
        It is no such file, when it is opened or while it is read.
    InputError
        A member of a tar cannot be read as text.
    """
    if file.endswith(".tar"):
        return _tar(stream, file)
    if file.endswith(".arrow"):
        return _arrow(stream)
    return _parquet(stream, remote=remote)


@contextmanager
def _parquet(stream: Any, *, remote: bool) -> Iterator[Rows]:
    # By default pyarrow fetches these columns of all row groups before it gives out a row.
    streamed = {"buffer_size": _STREAMED, "pre_buffer": False} if remote else {}
    with pq.ParquetFile(stream, **streamed) as data:
        yield Rows(
            data.schema_arrow,
            lambda columns: data.iter_batches(_BATCH_ROWS, columns=list(dict.fromkeys(columns))),
            data.metadata.num_rows,
        )


@contextmanager
def _arrow(stream: Any) -> Iterator[Rows]:
    head = stream.read(len(b"ARROW1"))
    stream.seek(0)
    if head == b"ARROW1":  # of the two layouts, the one with a footer
        opened = pa.ipc.open_file(stream)
        parts: Iterator[pa.RecordBatch] = map(opened.get_batch, range(opened.num_record_batches))
    else:
        opened = pa.ipc.open_stream(stream)
        parts = iter(opened)
    yield Rows(opened.schema, lambda columns: (_sliced(part, columns) for part in parts))


def _sliced(part: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    return part.select(list(dict.fromkeys(columns)))


@contextmanager
def _tar(stream: Any, file: str) -> Iterator[Rows]:
    """Read webdataset's shards: members whose names agree up to the first dot are one sample."""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            samples = _samples(tar)
            names = sorted({name for sample in samples for name in sample})
            fields = {
                f"{name}.{key}"
                for name in names
                if name == "json"
                for key in _object(tar, samples[0].get(name), file)
            }
            # Any member may be text or medium: what is asked of it decides.
            schema = pa.schema([(name, pa.string()) for name in sorted({*names, *fields})])
            yield Rows(
                schema,
                lambda columns: _members(tar, samples, list(dict.fromkeys(columns)), file),
                len(samples),
            )
    except tarfile.TarError as error:
        raise pa.ArrowInvalid(f"no tar: {error}") from error


def _samples(tar: tarfile.TarFile) -> list[dict[str, tarfile.TarInfo]]:
    found: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in tar:
        folder, name = posixpath.split(member.name)
        key, dot, kind = name.partition(".")
        if member.isreg() and key and dot:  # links and devices are no samples
            found.setdefault(posixpath.join(folder, key), {})[kind.lower()] = member
    return list(found.values())


def _members(
    tar: tarfile.TarFile,
    samples: Sequence[dict[str, tarfile.TarInfo]],
    columns: Sequence[str],
    file: str,
) -> Iterator[pa.RecordBatch]:
    """Yield texts as strings, and beside each, as ``NAME@``, where its member lies."""
    for start in range(0, len(samples), _BATCH_ROWS):
        part = samples[start : start + _BATCH_ROWS]
        arrays: dict[str, pa.Array] = {}
        for column in columns:
            name, _, field = column.partition(".")
            if column.endswith("@"):
                inside = [sample.get(column.removesuffix("@")) for sample in part]
                places = [m and {"start": m.offset_data, "size": m.size} for m in inside]
                arrays[column] = pa.array(places, MEMBER)
            elif name == "json" and field:
                values = [_object(tar, sample.get(name), file).get(field) for sample in part]
                arrays[column] = pa.array([None if v is None else str(v) for v in values])
            else:
                texts = [_text(tar, sample.get(column), file) for sample in part]
                arrays[column] = pa.array(texts, pa.string())
        yield pa.record_batch(arrays)


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo | None, file: str) -> str | None:
    if member is None:
        return None
    content = tar.extractfile(member)
    assert content is not None  # it is a regular file
    try:
        if member.size > _TEXT_BYTES:
            raise ValueError(f"it has {member.size} bytes")
        return content.read().decode()
    except ValueError as error:
        raise InputError(
            f"member {member.name} of {file} cannot be read as text: {error}",
            expected=f"at most {_TEXT_BYTES} bytes of UTF-8",
            remedy="name the columns of media as query_image or positive_image",
        ) from error


def _object(tar: tarfile.TarFile, member: tarfile.TarInfo | None, file: str) -> dict[str, Any]:
    text = _text(tar, member, file)
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{member.name if member else '?'} of {file} is no JSON: {error}",
            expected="an object of texts",
        ) from error
    return found if isinstance(found, dict) else {}
