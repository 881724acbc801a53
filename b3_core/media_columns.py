"""Columns of images and videos, as they stand in files of rows -> references to their bytes.

    paths                      -> files below the media root
    bytes, or {bytes, path}    -> packed into one file, each once
    members of a tar           -> ranges of that tar, where it lies

What is referred to is not looked at here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from b3_core.arrow_types import value_type
from b3_core.errors import InputError
from b3_core.remote import open_fs

SIDES = ("query", "positive")

#: Where a medium is. Inputs have its digest besides.
PLACE = pa.struct(
    [
        ("kind", pa.string()),  # image, video, or blank where there is none
        ("file", pa.string()),  # below the media root; blank: packed
        ("start", pa.int64()),
        ("size", pa.int64()),  # -1: to the end of the file
    ]
)


@dataclass(frozen=True)
class MediaColumns:
    """Which columns hold media, and where their files and bytes are."""

    of_side: Mapping[str, Mapping[str, str]]
    """Side (query, positive, negative) -> kind (image, video) -> column."""
    root: str
    """What paths are below."""
    pack: Callable[[bytes], tuple[int, int]]
    """Puts bytes somewhere, and says where: start, size."""

    @property
    def sides(self) -> tuple[str, ...]:
        """Query and positive; and negative, if that has media."""
        return (*SIDES, *("negative",) * ("negative" in self.of_side))


@dataclass(frozen=True, eq=False)
class MediaOf:
    """The media of one file of rows.

    Raises
    ------
    InputError
        A column is not there, or holds neither paths nor bytes; or a tar is not below the root.
    """

    media: MediaColumns
    fs: Any
    file: str
    schema: pa.Schema

    def __post_init__(self) -> None:
        for side, kinds in self.media.of_side.items():
            for kind, column in kinds.items():
                self._check(column, f"{side}_{kind}")

    @property
    def columns(self) -> list[str]:
        """What to read of the file."""
        mark = "@" if self._is_tar else ""
        return [f"{name}{mark}" for kinds in self.media.of_side.values() for name in kinds.values()]

    def of_batch(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        """Return the media of each side of a batch: arrays of ``PLACE``.

        Raises
        ------
        InputError
            A row has an image and a video on one side.
        """
        of_side = self.media.of_side
        return {side: self._side(batch, of_side.get(side, {}), side) for side in self.media.sides}

    def _side(self, batch: pa.RecordBatch, kinds: Mapping[str, str], side: str) -> pa.Array:
        found = [self._column(batch, kind, column) for kind, column in kinds.items()]
        if not found:
            return _places("", len(batch))
        merged = found[0]
        for other in found[1:]:
            here, there = (pc.not_equal(each.field("kind"), "") for each in (merged, other))
            both = pc.and_(here, there)
            if both.true_count:
                raise InputError(
                    f"row {both.index(True).as_py()} of a part of {self.file} has an image and a "
                    f"video as its {side}",
                    expected="one of them",
                )
            merged = pc.if_else(there, other, merged)
        return merged

    def _column(self, batch: pa.RecordBatch, kind: str, column: str) -> pa.Array:
        if self._is_tar:
            at = batch.column(f"{column}@")
            there = at.is_valid()
            return _places(
                pc.if_else(there, kind, ""),
                len(batch),
                file=pc.if_else(there, self._own_place, ""),
                start=at.field("start").fill_null(0),
                size=at.field("size").fill_null(-1),
            )
        values = batch.column(column)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if pa.types.is_struct(values.type):
            names = {field.name for field in values.type}
            content = pc.struct_field(values, "bytes")
            paths = pc.struct_field(values, "path") if "path" in names else None
        elif _is_bytes(values.type):
            content, paths = values, None
        else:
            content, paths = None, values
        return self._referred(kind, content, paths, rows=len(batch))

    def _referred(
        self, kind: str, content: pa.Array | None, paths: pa.Array | None, *, rows: int
    ) -> pa.Array:
        if content is None:
            content = pa.nulls(rows, pa.binary())
        packed = [
            (0, -1) if value is None else self.media.pack(value)
            for value in map(_as_py, content)  # one at a time: a batch of media may be large
        ]
        none = pa.repeat("", rows)
        file = none if paths is None else paths.cast(pa.string()).fill_null("")
        inside = content.is_valid()
        file = pc.if_else(inside, "", file)  # where there are bytes, the path is but a name
        there = pc.or_(inside, pc.not_equal(file, ""))
        start, size = zip(*packed, strict=True) if packed else ((), ())
        return _places(
            pc.if_else(there, kind, ""),
            rows,
            file=file,
            start=pa.array(start, pa.int64()),
            size=pa.array(size, pa.int64()),
        )

    def _check(self, column: str, role: str) -> None:
        if self.schema.names.count(column) != 1:
            raise InputError(
                f"column {column!r} is not in {self.file}",
                expected=f"one of: {', '.join(self.schema.names[:20])}",
                remedy=f"set '{role}' of the dataset to another column",
            )
        kind = self.schema.field(column).type
        value = value_type(kind)
        struct = pa.types.is_struct(value) and value.get_field_index("bytes") >= 0
        if not (struct or _is_bytes(value) or _is_path(value)):
            raise InputError(
                f"column {column!r} of {self.file} holds {kind}",
                expected="paths, bytes, or structs of bytes and path",
                remedy=f"set '{role}' of the dataset to another column",
            )

    @property
    def _is_tar(self) -> bool:
        return self.file.endswith(".tar")

    @cached_property
    def _own_place(self) -> str:
        """Path of this file below the media root."""
        _, root = open_fs(self.media.root)
        below = self.file.removeprefix(root.rstrip("/") + "/")
        if below == self.file:
            raise InputError(
                f"{self.file} is not below media.root {self.media.root}",
                expected="shards below it: their members are read where they lie",
                remedy="leave media.root out",
            )
        return below


def _as_py(value: pa.Scalar) -> bytes | None:
    found: bytes | None = value.as_py()
    return found


def _places(
    kind: pa.Array | str,
    rows: int,
    *,
    file: pa.Array | None = None,
    start: pa.Array | None = None,
    size: pa.Array | None = None,
) -> pa.Array:
    none = pa.repeat("", rows)
    return pa.StructArray.from_arrays(
        [
            pa.repeat(kind, rows) if isinstance(kind, str) else kind,
            none if file is None else file,
            pa.repeat(0, rows).cast(pa.int64()) if start is None else start,
            pa.repeat(-1, rows).cast(pa.int64()) if size is None else size,
        ],
        fields=list(PLACE),
    )


def _is_bytes(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary))


def _is_path(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string))
