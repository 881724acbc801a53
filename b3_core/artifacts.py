"""What an artifact is: an address known before it is made, a draft, a record, files.

An address is a hash of what decides a stage's output, so the same work done elsewhere, or after
a crash, lands at the same place.
"""

import contextlib
import functools
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from b3_core.errors import CorruptArtifactError
from b3_core.remote import Ranged
from b3_core.scratch import scratch

_LARGE = 16 << 20
_hashed: dict[tuple[str | int, ...], str] = {}


def canonical_json(value: object) -> bytes:
    """Encode JSON the one way: sorted keys, no spaces, no NaN.

    Raises
    ------
    TypeError
        The value holds something that is no JSON (a path, an array, a set): it cannot be hashed.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a local file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_once(path: Path) -> str:
    """Return the hex sha256 of a local file; a large one is read once a process.

    That holds for as long as its file is the same and was not written to. A small one is read each
    time: two writes within a tick of the clock leave it looking alike.
    """
    stat = path.stat()
    seen = (
        str(path),
        *(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns),
    )
    if seen not in _hashed:
        found = sha256_file(path)
        if stat.st_size < _LARGE:
            return found
        _hashed[seen] = found
    return _hashed[seen]


def is_fingerprint(name: str) -> bool:
    """Say whether a folder's name can be an artifact's fingerprint."""
    return re.fullmatch(r"[0-9a-f]{20}", name) is not None


@dataclass(frozen=True)
class Address:
    """Where an artifact lives, known before it is made."""

    dataset: str
    stage: str
    fingerprint: str

    @classmethod
    def of(
        cls,
        dataset: str,
        stage: str,
        *,
        version: int,
        settings: Mapping[str, object],
        inputs: Mapping[str, str],
    ) -> Self:
        """Hash what decides a stage's output: settings, upstream fingerprints, code version.

        Paths, worker counts and devices do not belong in ``settings``: the same work done
        elsewhere must land at the same address.
        """
        identity = {
            "stage": stage,
            "version": version,
            "settings": dict(settings),
            "inputs": dict(inputs),
        }
        return cls(dataset, stage, hashlib.sha256(canonical_json(identity)).hexdigest()[:20])

    @property
    def path(self) -> str:
        """The folder below the store's root."""
        return f"{self.dataset}/{self.stage}/{self.fingerprint}"


#: What the parts of an artifact took, among its counts (:func:`b3_core.stage.parts_cost`).
PARTS = "parts"


@dataclass(frozen=True)
class StoredFile:
    """One data file of an artifact, by its logical name."""

    path: str
    size: int
    sha256: str

    def describes(self, local: Path) -> bool:
        """Tell whether a local file has these bytes.

        Parts of a dataset map its vectors a thousand times: see :func:`sha256_once`.
        """
        return local.stat().st_size == self.size and sha256_once(local) == self.sha256


class Files(Protocol):
    """Where an artifact's bytes come from: the store, as an artifact sees it."""

    def uri(self, path: str) -> str:
        """Return the absolute URI of a path below the root."""

    def local_copy(self, path: str, entry: StoredFile, *, anew: bool = False) -> Path:
        """Return a local path of a stored file; ``anew`` distrusts a copy made before."""

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Return some bytes of a stored file, by one request."""


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its record, and its files on demand."""

    store: Files
    address: Address
    record: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """What the artifact was made from, hashed."""
        return self.address.fingerprint

    @property
    def uri(self) -> str:
        """The artifact's folder, absolute."""
        return self.store.uri(self.address.path)

    @property
    def counts(self) -> Mapping[str, Any]:
        """The figures the stage recorded about its output."""
        counts: Mapping[str, Any] = self.record["counts"]
        return counts

    @property
    def figures(self) -> dict[str, Any]:
        """Those that are the same whenever it is made: without what its parts took."""
        return {name: value for name, value in self.counts.items() if name != PARTS}

    @cached_property
    def files(self) -> Mapping[str, StoredFile]:
        """Logical name -> stored file."""
        return {name: StoredFile(**entry) for name, entry in self.record["files"].items()}

    def path(self, name: str) -> Path:
        """Return a local path with the bytes of a file, checked against its sha256.

        Raises
        ------
        CorruptArtifactError
            The stored bytes are not the recorded ones, or the record has no such file.
        """
        if name not in self.files:
            raise CorruptArtifactError(
                f"{self.uri} has no file {name}",
                remedy="delete the artifact's folder and run the same command again",
            )
        entry = self.files[name]
        stored = f"{self.address.path}/{entry.path}"
        local = self.store.local_copy(stored, entry)
        if not entry.describes(local):
            local = self.store.local_copy(stored, entry, anew=True)
        if not entry.describes(local):
            raise CorruptArtifactError(
                f"{self.store.uri(stored)} is not what was recorded",
                expected=f"{entry.size} bytes with sha256 {entry.sha256[:12]}...",
                remedy="delete the artifact's folder and run the same command again",
            )
        return local

    def array(self, name: str) -> npt.NDArray[Any]:
        """Map an ``.npy`` file, checked as :meth:`path` does: read-only, read where it is used."""
        file = self.path(name)
        mapped: npt.NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
        return np.asarray(mapped)

    def open(self, name: str) -> io.RawIOBase:
        """Open a file to read parts of it where it is stored: no copy, a request a read.

        Nothing checks the sha256 of what is not read whole.
        """
        entry = self.files[name]
        stored = f"{self.address.path}/{entry.path}"
        return Ranged(functools.partial(self.store.read, stored), entry.size)

    def lay_out(self, folder: Path, prefix: str = "") -> list[str]:
        """Copy the files whose logical names begin with ``prefix`` to the rest of their names.

        Returns
        -------
        list of str
            Paths in ``folder`` of what was copied.

        Raises
        ------
        CorruptArtifactError
            The stored bytes are not the recorded ones.
        """
        names = [name for name in self.files if name.startswith(prefix)]
        for name in names:
            target = folder / name.removeprefix(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.path(name), target)
        return [name.removeprefix(prefix) for name in names]

    @contextlib.contextmanager
    def folder(self, prefix: str) -> Iterator[Path]:
        """Lay the files under ``prefix/`` out in a temporary folder under their logical names."""
        with scratch() as folder:
            self.lay_out(folder, f"{prefix}/")
            yield folder


@dataclass
class Draft:
    """An artifact in the making: a private local folder that nobody else sees."""

    folder: Path
    counts: dict[str, Any] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """Return the local path to write file ``name`` at; ``name`` may hold folders."""
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def write_json(self, name: str, value: object) -> None:
        """Write canonical JSON, so that the same value has the same bytes."""
        self.path(name).write_bytes(canonical_json(value) + b"\n")

    def names(self) -> list[str]:
        """Every file written so far, sorted."""
        return sorted(
            file.relative_to(self.folder).as_posix()
            for file in self.folder.rglob("*")
            if file.is_file()
        )
