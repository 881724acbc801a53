"""Local copies of benchmarks: annotation files, and what files there are below a media root.

Annotations were written by others: sizes are bounded, and pickled ones are not read.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from b3_core.errors import InputError
from b3_core.remote import open_fs

_MOST_BYTES = 1 << 30  # of an annotation file: the largest that are known have 150 MB
_MOST_FILES = 5_000_000


def media_names(root: str) -> list[str]:
    """List the files below a media root, sorted, with forward slashes.

    Raises
    ------
    InputError
        There is no such folder, or there are more than five million files.
    """
    fs, base = open_fs(root)
    names: list[str] = []
    if "://" not in root:
        for folder, folders, files in os.walk(root):  # does not follow links to folders
            folders.sort()
            below = Path(folder).relative_to(root).as_posix()
            names.extend(file if below == "." else f"{below}/{file}" for file in files)
            if len(names) > _MOST_FILES:
                raise InputError(f"more than {_MOST_FILES} files below {root}")
    else:
        prefix = base.rstrip("/") + "/"
        names = [str(path).removeprefix(prefix) for path in fs.find(base)]
    if not names:
        raise InputError(f"no files below {root}", expected="a folder with images or videos")
    return sorted(names)


def read_json(path: Path) -> Any:
    """Read a JSON file of at most 1 GiB.

    Raises
    ------
    InputError
        It is not there, too large, or no JSON.
    """
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}") from error


def read_text(path: Path) -> str:
    """Read a UTF-8 text of at most 1 GiB.

    Raises
    ------
    InputError
        It is not there, too large, or no UTF-8.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} is larger than {_MOST_BYTES} bytes")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def objects(content: Any, path: Path, key: str, fields: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return a list of objects that have all fields, from a JSON's top or below ``key``.

    Raises
    ------
    InputError
        It is something else.
    """
    listed = content.get(key) if isinstance(content, dict) and key else content
    if not isinstance(listed, list):
        raise InputError(f"{path} has no list{f' under {key!r}' if key else ''}")
    for at, row in enumerate(listed):
        if not isinstance(row, dict) or not all(field in row for field in fields):
            raise InputError(f"entry {at} of {path} lacks one of {', '.join(fields)}")
    return listed


def parquet_rows(path: Path, columns: Sequence[str], batch: int = 64) -> Iterable[dict[str, Any]]:
    """Yield rows of a parquet file, a few at a time.

    Raises
    ------
    InputError
        It is no parquet file, or lacks a column.
    """
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            lacking = [column for column in columns if column not in file.schema_arrow.names]
            if lacking:
                raise InputError(
                    f"column '{lacking[0]}' not in {path}",
                    expected=f"columns {', '.join(columns)}",
                )
            for part in file.iter_batches(batch_size=batch, columns=list(columns)):
                yield from part.to_pylist()
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {path}: {error}") from error


def text_of(value: Any) -> str:
    """Return a text as it is.

    Raises
    ------
    InputError
        It is something else.
    """
    if not isinstance(value, str):
        raise InputError(f"{value!r} stands where a text was expected")
    return value
