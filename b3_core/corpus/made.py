"""Corpora that are made of one package's data: every row at once, in three parts by a hash.

    versions of the packages -> fingerprint
    rows -> parts by family -> at most so many a part

A *family* is what must not be in two parts: rows so alike that one gives the other away. Which
part it is in hangs on its name alone, so that rows which come or go move no other.

Columns are those a kind names; ``package`` is the family, and ``where`` says what the row is made
of. A column of images holds ``{bytes, path}``, as Hugging Face's Image feature is stored.
"""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import NamedTuple

import pyarrow as pa

from b3_core.corpus.parts import Corpus, Part
from b3_core.errors import InputError
from b3_core.progress import Progress, silent

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""Type of a column of images."""

PICTURES = pa.schema(
    [("image", IMAGE), ("text", pa.string()), ("package", pa.string()), ("where", pa.string())]
)
"""Columns of a corpus of pictures and what they show."""

_PARTS: tuple[Part, ...] = ("test", "validation", "train")
_SHARES: Mapping[Part, float] = MappingProxyType({"test": 0.15, "validation": 0.15, "train": 0.7})


class Made(NamedTuple):
    """All rows of a corpus, and what was passed over while they were made."""

    rows: pa.Table
    skipped: int = 0


@dataclass(frozen=True)
class MadeKind:
    """A kind of corpus that is made of what a few packages carry."""

    dataset: str
    """Names the dataset's folder in the store."""
    columns: Mapping[str, str]
    """What is in the columns: of ``query``, ``query_image`` and ``positive`` those there are."""
    task: str
    """The dataset's task, as CONFIG names it."""
    packages: tuple[str, ...]
    """Decide every byte: those that hold the data, and those that draw it."""
    make: Callable[[Progress], Made]
    """Makes the rows, in an order that mixes the families."""
    shares: Mapping[Part, float] = field(default_factory=lambda: _SHARES)
    """Shares of the families."""


def made_fingerprint(kind: MadeKind) -> str:
    """Say what a kind would be made of, without making it.

    Returns
    -------
    str
        Hex sha256 over the versions of its packages: what is published under one stays the same.

    Raises
    ------
    InputError
        A package is not installed.
    """
    found = "".join(f"{name} {_version(name)}\n" for name in sorted(kind.packages))
    return hashlib.sha256(f"{kind.dataset}\n{found}".encode()).hexdigest()


def make_corpus(
    kind: MadeKind,
    pairs: int = 20_000,
    *,
    heldout: int = 4_000,
    validation: int = 2_000,
    progress: Progress = silent,
) -> Corpus:
    """Make a corpus and share it out.

    Parameters
    ----------
    pairs, heldout, validation
        Most rows of the training, test and validation parts.
    progress
        Told how many rows are made.

    Raises
    ------
    InputError
        A package is not installed, or has no row for one of the parts.
    """
    made_fingerprint(kind)  # says what to install before anything of it is imported
    rows, skipped = kind.make(progress)
    families = rows.column("package").to_pylist()
    part_of = {family: family_part(family, kind.shares) for family in set(families)}
    caps: dict[Part, int] = {"test": heldout, "validation": validation, "train": pairs}
    parts = {}
    for part in _PARTS:
        mask = pa.array([part_of[family] == part for family in families], pa.bool_())
        parts[part] = rows.filter(mask).slice(0, caps[part]).combine_chunks()
        if not len(parts[part]):
            raise InputError(
                f"{', '.join(kind.packages)} have no row for the {part} part of {kind.dataset}",
                remedy="install the versions of constraints.txt",
            )
    return Corpus(**parts, skipped=skipped)


def family_part(family: str, shares: Mapping[Part, float]) -> Part:
    """Return the part that a family belongs to, by a hash of its name."""
    position = mixed(f"part of {family}") / 2**64  # not the number that rows are sorted by
    for part in _PARTS:
        if position < shares[part]:
            return part
        position -= shares[part]
    return "train"


def mixed(name: str) -> int:
    """Return a number below 2**64 that is the same everywhere: sorting by it mixes names."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def as_images(contents: Sequence[bytes], paths: Sequence[str]) -> pa.Array:
    """Put images into a column."""
    return pa.StructArray.from_arrays(
        [pa.array(contents, pa.binary()), pa.array(paths, pa.string())], fields=list(IMAGE)
    )


def png(pixels: bytes, width: int, height: int | None = None) -> bytes:
    """Return grey values, row by row from the top, as a PNG; of a square by default."""
    from PIL import Image  # noqa: PLC0415 - an extra

    stream = io.BytesIO()
    Image.frombytes("L", (width, height or width), pixels).save(stream, "PNG")
    return stream.getvalue()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError as error:
        raise InputError(
            f"package {name} is not installed", remedy=f"run: pip install {name}"
        ) from error
