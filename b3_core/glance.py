"""A look at a user's files before anything is decided: columns, how many rows, some of them.

    uri -> some of its files -> the head of each, every n-th row -> Glance

Of large data only a part is read, so that the look takes seconds; what was read is said.

Legend: N rows.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from b3_core.arrow_types import is_list, is_text, value_type
from b3_core.errors import InputError
from b3_core.formats import Rows, open_rows_of
from b3_core.remote import Remote
from b3_core.source import (
    Blanks,
    check_columns,
    list_files,
    opened,
)

_FILES = 16  # opened at most
_SCANNED = 100_000  # rows read of all files together
_TWICE = "two columns"

#: Rows that can be mined, at least, each with another positive: one is held out.
LEAST = 3

#: Members of a webdataset's samples, which its tars do not type.
IMAGE_NAMES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp"})
VIDEO_NAMES = frozenset({"mp4", "webm", "mov", "mkv", "avi"})
_BINARY_NAMES = frozenset({"npy", "npz", "pth", "pt", "pkl", "pickle", "wav", "flac", "mp3"})


@dataclass(frozen=True)
class Glance:
    """What a dataset looks like."""

    uri: str
    schema: pa.Schema
    """Columns that all files have alike, with the types of the first."""
    rows: int
    exact: bool
    """Whether ``rows`` was counted; else it is scaled up from some files by their sizes."""
    sample: pa.Table
    """Every n-th row of what was read, without columns of media and nested values."""
    files: Sequence[str]
    """Those that were opened."""
    uneven: Mapping[str, str]
    """Columns that files do not have alike, which a run refuses -> how they differ."""

    def texts(self, column: str) -> list[str | None]:
        """Return a column of the sample as text."""
        found: list[str | None] = self.sample[column].cast(pa.string()).to_pylist()
        return found


def glance(uri: str, *, limit: int = 2000) -> Glance:
    """Look at a dataset: a file, folder or glob, local or in a bucket.

    Parameters
    ----------
    limit
        Rows of the sample at most.

    Raises
    ------
    InputError
        There is no such file, it cannot be read, or it holds too few rows to mine.
    """
    files = _Files.of(uri)
    thin = _Thinned(limit)
    schemas: dict[str, pa.Schema] = {}
    first_kind: dict[str, str] = {}

    def look(rows: Rows, file: str) -> None:
        schemas[file] = rows.schema
        kinds = _kinds(rows.schema)
        names = [
            field.name
            for field in rows.schema
            if is_plain(field, file)
            and kinds[field.name] != _TWICE
            # Others could not be put together; they are uneven.
            and kinds[field.name] == first_kind.setdefault(field.name, kinds[field.name])
        ]
        _scan(rows, names, lambda batch, start: thin.add(batch), files)

    files.each(look)
    if files.rows < LEAST:
        raise InputError(
            f"{uri} holds {['no rows', 'one row', 'two rows'][files.rows]}",
            expected=f"at least {LEAST}, with different positives: one is held out to evaluate on",
            remedy="add rows" if files.rows else "check how the file was written",
        )
    uneven = _uneven(schemas)
    schema = pa.schema(
        [field for field in next(iter(schemas.values())) if field.name not in uneven]
    )
    sample = thin.table()
    sample = sample.select([name for name in sample.column_names if name not in uneven])
    return Glance(uri, schema, files.rows, files.exact, sample, list(schemas), uneven)


def _uneven(schemas: Mapping[str, pa.Schema]) -> dict[str, str]:
    """Say which columns a run could not read out of every file, and why."""
    kinds_of = {file: _kinds(schema) for file, schema in schemas.items()}
    found = {}
    for name in dict.fromkeys(name for kinds in kinds_of.values() for name in kinds):
        lacking = [file for file, kinds in kinds_of.items() if name not in kinds]
        if lacking:
            found[name] = f"is not in {lacking[0]}"
            continue
        file_of = {kinds[name]: file for file, kinds in reversed(kinds_of.items())}
        if len(file_of) > 1:
            held = [f"{kind} in {file}" for kind, file in reversed(file_of.items())]
            found[name] = f"holds {' and '.join(held[:2])}"
    return found


def _kinds(schema: pa.Schema) -> dict[str, str]:
    """Name what columns hold, as coarsely as a run tells it apart."""
    return {
        field.name: _TWICE if schema.names.count(field.name) > 1 else _kind(field.type)
        for field in schema
    }


def _kind(kind: pa.DataType) -> str:
    value = value_type(kind)
    if is_text(value):
        return "text"
    if pa.types.is_integer(value):
        return "integers"
    if is_list(value):
        return "lists"
    # Of media: bytes of one width or another, alone or beside a path.
    return "bytes" if pa.types.is_struct(value) or "binary" in str(value) else str(value)


def draw_rows(
    uri: str,
    texts: Mapping[str, str],
    media: Sequence[str] = (),
    *,
    limit: int,
    may_lack: Collection[str] = (),
) -> pa.Table:
    """Read some rows of a dataset, evenly spread over what is read of it.

    Parameters
    ----------
    texts
        Field of ``DatasetSpec`` -> column that holds its texts.
    media
        Columns of pictures and videos. With any, the first ``limit`` rows are read and no more.
    limit
        Rows at most.
    may_lack
        Fields of ``texts`` that may be blank.

    Raises
    ------
    InputError
        As :func:`glance`; or a column is not there, holds something else, or is blank in a row
        that was read.
    """
    files = _Files.of(uri)
    thin = _Thinned(limit)
    blanks = {role: Blanks(name) for role, name in texts.items() if role not in may_lack}
    columns = sorted({*texts.values(), *media})

    def look(rows: Rows, file: str) -> None:
        check_columns(rows.schema, texts, file)
        lacking = [name for name in media if name not in rows.schema.names]
        if lacking:
            raise InputError(
                f"column {lacking[0]!r} is not in {file}",
                expected=f"one of: {', '.join(rows.schema.names[:20])}",
                remedy="correct the name in CONFIG",
            )

        def add(batch: pa.RecordBatch, start: int) -> None:
            for role, blank in blanks.items():
                text = batch.column(texts[role])
                blank.look(text.cast(pa.string()), file, start)
            thin.add(batch)

        _scan(rows, columns, add, files, most=limit if media else _SCANNED)

    files.each(look)
    for blank in blanks.values():
        blank.refuse()
    return thin.table()


def count_rows(uri: str) -> int:
    """Count a dataset's rows by what its files say of themselves, or estimate them by sizes.

    Raises
    ------
    InputError
        There is no such file, or it cannot be read.
    """
    files = _Files.of(uri)

    def look(rows: Rows, file: str) -> None:
        if rows.count is None:
            files.count(sum(len(batch) for batch in rows.batches(rows.schema.names[:1])))
        else:
            files.count(rows.count)

    files.each(look)
    return files.rows


def holds_tars(uri: str) -> bool:
    """Tell whether a dataset is of webdataset's tars."""
    return any(file.endswith(".tar") for file in list_files(uri)[1])


def is_plain(field: pa.Field, file: str) -> bool:
    """Tell whether a column holds texts, numbers or dates: what is cheap to read and to show."""
    if file.endswith(".tar") and field.name in IMAGE_NAMES | VIDEO_NAMES | _BINARY_NAMES:
        return False
    value = value_type(field.type)
    # Those are what media come as, or what nobody could name as a text.
    return not (pa.types.is_nested(value) or "binary" in str(value) or pa.types.is_null(value))


@dataclass
class _Files:
    """Some of a dataset's files, and how many rows they turned out to hold."""

    fs: Any
    files: Mapping[str, Mapping[str, Any]]
    chosen: Sequence[str]
    counted: int = 0

    @classmethod
    def of(cls, uri: str) -> "_Files":
        fs, files = list_files(uri)
        step = -(-len(files) // _FILES)
        return cls(fs, files, list(files)[::step])

    def each(self, look: Callable[[Rows, str], None]) -> None:
        """Open one file after another; what goes wrong while one is looked at is one line."""
        for file in self.chosen:
            with (
                opened(self.fs, file, self.files[file]) as stream,
                open_rows_of(stream, file, remote=isinstance(self.fs, Remote)) as rows,
            ):
                look(rows, file)

    def count(self, rows: int) -> None:
        self.counted += rows

    @property
    def exact(self) -> bool:
        return len(self.chosen) == len(self.files)

    @property
    def rows(self) -> int:
        if self.exact:
            return self.counted
        size = sum(int(info.get("size") or 0) for info in self.files.values())
        seen = sum(int(self.files[file].get("size") or 0) for file in self.chosen)
        return round(self.counted * size / max(seen, 1))


def _bare(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the same without dictionaries, which differ from file to file, and views of strings.

    Arrow takes no rows of the latter.
    """
    fields = []
    for field in batch.schema:
        value = value_type(field.type)
        fields.append(field.with_type(pa.string() if pa.types.is_string_view(value) else value))
    return batch.cast(pa.schema(fields))


class _Thinned:
    """Keeps every n-th row of a stream of unknown length, at most ``limit`` of them."""

    def __init__(self, limit: int) -> None:
        self._limit, self._step, self._seen = limit, 1, 0
        self._parts: list[pa.Table] = []

    def add(self, batch: pa.RecordBatch) -> None:
        first = -self._seen % self._step
        self._seen += len(batch)
        places = range(first, len(batch), self._step)
        if places:
            self._parts.append(pa.Table.from_batches([_bare(batch).take(pa.array(places))]))
        while sum(map(len, self._parts)) > self._limit:
            kept = pa.concat_tables(self._parts, promote_options="permissive")
            self._parts = [kept.take(pa.array(range(0, len(kept), 2)))]
            self._step *= 2

    def table(self) -> pa.Table:
        if not self._parts:
            return pa.table({})
        return pa.concat_tables(self._parts, promote_options="permissive").combine_chunks()


def _scan(
    rows: Rows,
    columns: list[str],
    add: Callable[[pa.RecordBatch, int], None],
    files: _Files,
    *,
    most: int = _SCANNED,
) -> None:
    """Read the head of one file, its share of ``most`` rows, and count it.

    ``add`` is told each batch of it, and the place of its first row.
    """
    share = -(-most // len(files.chosen))
    read = 0
    for batch in rows.batches(columns):
        if read < share:
            add(batch.slice(0, share - read), read)
        read += len(batch)
        if read >= share and rows.count is not None:
            break
    files.count(read if rows.count is None else rows.count)
