"""What an encoder takes for one side of a row: a text, and the image or video beside it.

    text, medium of every row -> Inputs -> decoded when a batch needs them -> str, or {image, text}

A *medium* is a range of bytes: a file below the dataset's media root, a member of a tar there, or
a part of the one file that the media of a parquet column were packed into. It is named by what it
is, not by where it lies: its digest is part of its row's key, and is compared whenever it is read.

Legend: N rows, T tables, x rows of those asked for.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from b3_core.errors import InputError
from b3_core.media import (
    MediaError,
    MediaLimits,
    MediaRoot,
    decode_frames,
    decode_image,
    media_digest,
)

#: What a model of text takes, or what one of several kinds does.
ModelInput = str | dict[str, Any]

MEDIUM = pa.struct(
    [
        ("kind", pa.string()),  # image, video, or blank where the side is text alone
        ("file", pa.string()),  # below the media root; blank: packed beside the pairs
        ("start", pa.int64()),  # its first byte there
        ("size", pa.int64()),  # its bytes; -1: to the end of the file
        ("digest", pa.string()),  # hex blake2b-128 of them
    ]
)
NO_MEDIUM: Mapping[str, Any] = {"kind": "", "file": "", "start": 0, "size": -1, "digest": ""}

PACKED = "media.bin"


@dataclass(frozen=True)
class Seeing:
    """How much of a medium a model is shown."""

    image_side: int | None = None
    """Most pixels a side of an image or frame; all of them if None."""
    frames: int = 8
    """Frames of a video."""


ALL = Seeing()


def shown(kind: str, content: bytes, seeing: Seeing, *, limits: MediaLimits) -> Any:
    """Decode a medium: a picture, or the list of a video's frames.

    Raises
    ------
    MediaError
        It cannot be decoded, or is beyond the limits.
    """
    if kind == "image":
        return decode_image(content, side=seeing.image_side, limits=limits)
    return decode_frames(content, frames=seeing.frames, side=seeing.image_side, limits=limits)


@lru_cache(maxsize=64)
def _root_of(root: str, limits: MediaLimits, process: int) -> MediaRoot:
    """Open a root once a process: of one in a bucket a server is asked, each time it is opened."""
    return MediaRoot(root, limits)


class Packer:
    """Puts media that came as bytes into one file, each once."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._file: BinaryIO | None = None
        self._end = 0
        self._known: dict[str, tuple[int, int]] = {}

    def add(self, content: bytes) -> tuple[int, int]:
        """Return where in the file the bytes are: start, size."""
        digest = media_digest(content)
        if digest not in self._known:
            if self._file is None:
                self._file = self._target.open("wb")
            self._file.write(content)
            self._known[digest] = (self._end, len(content))
            self._end += len(content)
        return self._known[digest]

    def flush(self) -> None:
        """Have the file hold what was added."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Finish the file; there is none if nothing was added."""
        if self._file is not None:
            self._file.close()


@dataclass(frozen=True)
class Shelf:
    """Where the media of one dataset are read from."""

    root: str | None
    """Folder or s3:// prefix that paths are below; None if nobody said."""
    packed: Path | None = None
    """File of those that came as bytes."""
    limits: MediaLimits = field(default_factory=MediaLimits)

    def show(self, medium: Mapping[str, Any], seeing: Seeing) -> Any:
        """Decode a medium: a picture, or the list of a video's frames.

        Raises
        ------
        InputError
            It cannot be read, or is not what it was when the rows were.
        """
        try:
            content = self._content(medium)
            if media_digest(content) != medium["digest"]:
                raise MediaError("was changed since its rows were read")
            return shown(medium["kind"], content, seeing, limits=self.limits)
        except MediaError as error:
            raise InputError(
                f"{medium['kind']} {medium['file'] or self.packed}: {error}",
                expected="the file as it was when the dataset was read",
                remedy="run the same command again: the dataset is read anew if it has changed",
            ) from error

    def _content(self, medium: Mapping[str, Any]) -> bytes:
        start, size = medium["start"], medium["size"]
        if medium["file"]:
            if self.root is None:
                raise InputError(
                    f"{medium['kind']} {medium['file']} lies outside the store",
                    expected="the folder that it is below",
                    remedy="open the manifest with media={dataset: folder}",
                )
            root = _root_of(self.root, self.limits, os.getpid())
            return root.read(medium["file"], kind=medium["kind"], start=start, size=size)
        if self.packed is None:
            raise MediaError("is packed beside its pairs, which are not here")
        with self.packed.open("rb") as file:
            file.seek(start)
            return file.read(size)


@dataclass(frozen=True, eq=False)
class Inputs(Sequence[ModelInput]):
    """One side of rows, N; media are decoded when they are asked for, and not kept.

    Texts alone are ``str``. Beside a column of media, every item is a dict with ``image`` (a
    picture, or the list of a video's frames), ``text``, or both: a string that looks like a path
    or URL would be opened by a model that knows images.
    """

    text_N: pa.ChunkedArray
    medium_N: pa.ChunkedArray | None = None
    shelf: Shelf | None = None
    seeing: Seeing = ALL

    def __len__(self) -> int:
        return len(self.text_N)

    @overload
    def __getitem__(self, index: int) -> ModelInput: ...
    @overload
    def __getitem__(self, index: slice) -> list[ModelInput]: ...
    def __getitem__(self, index: int | slice) -> ModelInput | list[ModelInput]:
        if isinstance(index, int):
            return self[index : index + 1][0]
        texts = self.text_N[index].to_pylist()
        if self.medium_N is None:
            return texts  # type: ignore[no-any-return]
        return compose(texts, self.medium_N[index].to_pylist(), self.shelf, self.seeing)


def compose(
    texts: Iterable[str],
    media: Iterable[Mapping[str, Any]],
    shelf: Shelf | None,
    seeing: Seeing,
) -> list[ModelInput]:
    """Put texts and decoded media together, as :class:`Inputs` has them."""
    found: list[ModelInput] = []
    for text, medium in zip(texts, media, strict=True):
        item: dict[str, Any] = {}
        if medium["kind"]:
            assert shelf is not None
            item["image"] = shelf.show(medium, seeing)  # first, as vision-language models have it
        if text or not item:
            item["text"] = text
        found.append(item)
    return found


@dataclass(frozen=True, eq=False)
class Shelves:
    """Where the media of several tables' rows are, one table after another."""

    shelf_T: Sequence[Shelf | None]
    """None where a table has no media."""
    length_T: Sequence[int]
    seeing: Seeing = ALL

    def compose(
        self,
        texts: Sequence[str],
        media: Sequence[Mapping[str, Any]] | None,
        position_x: npt.NDArray[np.int64],
    ) -> list[ModelInput]:
        """Put texts and media of rows together, as :class:`Inputs` has them."""
        if media is None:
            media = [NO_MEDIUM] * len(texts)
        # A batch that is drawn across datasets has rows of several tables.
        table_x = np.searchsorted(np.cumsum(self.length_T), position_x, side="right")
        return [
            compose([text], [medium], self.shelf_T[table], self.seeing)[0]
            for text, medium, table in zip(texts, media, table_x.tolist(), strict=True)
        ]


def prompted(item: ModelInput, prompt: str) -> ModelInput:
    """Put a prompt before an input's text; an input without one gets it as its text."""
    if not prompt:
        return item
    if isinstance(item, str):
        return prompt + item
    return {**item, "text": prompt + item.get("text", "")}
