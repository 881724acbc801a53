"""Artifacts: made once, whole or absent, found again by what they were made from.

``<root>/<dataset>/<stage>/<fingerprint>/`` holds data files whose names carry their content hash
and, written last and only if absent, ``record.json``: sizes, sha256, counts, lineage, times.
A record whose files are all there is the proof that the stage is done. Nothing else is.

    draft = private folder   ->  data files moved in  ->  record.json created (the publication)
    killed here: only litter     killed here: litter      killed here: done
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from b3_core.artifacts import Address, Artifact, Draft, StoredFile, canonical_json, sha256_file
from b3_core.copies import DRAFT, cache_folder, used
from b3_core.errors import (
    B3Error,
    CorruptArtifactError,
    InputError,
    UnreachableError,
    carries_credentials,
    reason,
)
from b3_core.remote import open_fs
from b3_core.usage import Usage

__all__ = [
    "Address",
    "Artifact",
    "ArtifactStore",
    "Draft",
    "canonical_json",
    "open_artifact",
]

RECORD = "record.json"
# What is no artifact, below the root; Ray Train's notes among it.
DRAFTS, PROBE, NOTES, RAY = ".drafts", ".probe-", ".notes", ".ray"
SCHEMA = 2
_SHA256 = re.compile("[0-9a-f]{64}")
UNSEALED = 1  # the version before, without a sha256 of itself: embeddings cost too much to refuse


class ArtifactStore:
    """A folder of artifacts: local, ``memory://`` or ``s3://``, by the same code.

    Parameters
    ----------
    root
        Local folder or fsspec URI. S3 credentials and endpoint come from the environment
        (``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``, ``AWS_ENDPOINT_URL``) alone.
    """

    def __init__(self, root: str) -> None:
        # What lacks a scheme is looked at as if it had one: s3:// may have been left out.
        if carries_credentials(root if "://" in root else f"://{root}"):
            raise InputError(
                "store.root carries credentials",
                expected="s3://bucket/prefix",
                remedy="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead",
            )
        self.root = root if "://" in root else os.path.normpath(Path(root).absolute())
        try:
            self.fs, self._base = open_fs(self.root)
        except (ValueError, ImportError) as error:
            raise InputError(
                f"store.root {root!r} cannot be opened: {error}",
                expected="a local folder or s3://bucket/prefix",
            ) from error
        self._local = isinstance(self.fs, LocalFileSystem)

    def __reduce__(self) -> tuple[type["ArtifactStore"], tuple[str]]:
        return (ArtifactStore, (self.root,))  # connections do not travel

    def uri(self, path: str) -> str:
        """Return the absolute URI of a path below the root."""
        return f"{self.root.rstrip('/')}/{path}"

    def check_writable(self, *, single_writer: bool = False) -> None:
        """Write and remove a small file, so that a bad store is refused before work is done.

        Parameters
        ----------
        single_writer
            Accept a store that overwrites where it was told to create only if absent: there, of two
            runs at once, the slower would replace what the faster has published.

        Raises
        ------
        InputError
            The store cannot be written, or it ignores conditions.
        """
        name = f"{PROBE}{uuid.uuid4().hex}"
        probe = self._path(name)
        try:
            self._create(probe, b"first")
            try:
                self._create(probe, b"second")
            except UnreachableError:
                raise  # nothing is known of conditions
            except Exception:  # noqa: S110 - as it should be; what counts is what is there
                pass
            conditional = self.fs.cat_file(probe) == b"first"
            self.remove(name)
        except Exception as error:  # botocore, aiohttp and the OS each have their own
            raise InputError(
                f"store.root {self.root} cannot be written: {reason(error)}",
                expected="a writable folder or bucket",
                remedy="check the path, its permissions and the AWS_* environment",
            ) from error
        if not (conditional or single_writer):
            raise InputError(
                f"store.root {self.root} overwrites objects that it was told to create if absent",
                expected="a store that honours If-None-Match, so that two runs cannot collide",
                remedy="use another store, or see to it that one run writes at a time and set "
                "store.single_writer: true",
            )

    def find(self, address: Address) -> Artifact | None:
        """Return the artifact if it is whole, else None."""
        record = self._read_record(address.path)
        return None if record is None else Artifact(self, address, record)

    def get(self, address: Address) -> Artifact:
        """Return a finished artifact.

        Raises
        ------
        B3Error
            There is none at that address.
        """
        artifact = self.find(address)
        if artifact is None:
            raise B3Error(
                f"no finished artifact at {self.uri(address.path)}",
                remedy="run the command that makes it",
            )
        return artifact

    def artifacts(self, dataset: str, stage: str) -> list[Artifact]:
        """Return every whole artifact of a dataset's stage, in the order they were finished."""
        folder = self._path(f"{dataset}/{stage}")
        self.fs.invalidate_cache(folder)
        try:
            names = [
                path.rstrip("/").rsplit("/", 1)[1] for path in self.fs.ls(folder, detail=False)
            ]
        except FileNotFoundError:
            return []
        found = (self.find(Address(dataset, stage, name)) for name in names)
        whole = [artifact for artifact in found if artifact is not None]
        return sorted(whole, key=lambda each: (each.record["finished"], each.fingerprint))

    @contextlib.contextmanager
    def draft(
        self,
        address: Address,
        *,
        lineage: Mapping[str, str],
        settings: Mapping[str, object],
    ) -> Iterator[Draft]:
        """Make an artifact; it is published when the block ends without an error.

        When two writers make the same artifact, the first record wins and the other's work is
        dropped: both were made from the same inputs.
        """
        used = Usage.start()
        parent = Path(self._base, DRAFTS) if self._local else Path(tempfile.gettempdir())
        folder = parent / f"{DRAFT}{uuid.uuid4().hex}"
        folder.mkdir(parents=True)
        try:
            draft = Draft(folder)
            yield draft
            files = {name: self._put(address, draft, name) for name in draft.names()}
            record = {
                "schema": SCHEMA,
                "dataset": address.dataset,
                "stage": address.stage,
                "fingerprint": address.fingerprint,
                "files": files,
                "counts": draft.counts,
                "lineage": dict(lineage),
                "settings": dict(settings),
                "writer": uuid.uuid4().hex,
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                **used.so_far(),
            }
            self._publish(address, record)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def exists(self) -> bool:
        """Whether anything was ever written here."""
        return bool(self.fs.exists(self._base))

    def files(self) -> dict[str, dict[str, Any]]:
        """Return every file below the root: path -> what the file system tells of it."""
        self.fs.invalidate_cache()
        base = self._path("")
        return {
            path.removeprefix(base): info
            for path, info in self.fs.find(self._base, detail=True).items()
        }

    def info(self, path: str) -> dict[str, Any]:
        """Return what the file system tells of one file now; FileNotFoundError if it is gone."""
        self.fs.invalidate_cache()
        return dict(self.fs.info(self._path(path)))

    def named_files(self, path: str) -> list[str]:
        """Return the files that the record of the artifact at ``path`` names."""
        record = self._parse_record(path)
        return [] if record is None else [entry["path"] for entry in record["files"].values()]

    def remove(self, path: str) -> None:
        """Delete one file; none is left to delete where another process was faster."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._path(path))

    def discard(self, address: Address) -> None:
        """Delete an artifact, its record first, so that a part of it is never taken for whole."""
        names = self.named_files(address.path)
        for name in (RECORD, *names):
            self.remove(f"{address.path}/{name}")

    def note(self, name: str) -> dict[str, Any] | None:
        """Return what was last noted under ``name``; None if nothing, or nothing readable, is."""
        try:
            noted = json.loads(self.fs.cat_file(self._path(f"{NOTES}/{name}.json")))
        except (FileNotFoundError, ValueError):
            return None
        return noted if isinstance(noted, dict) else None

    def set_note(self, name: str, value: Mapping[str, object]) -> None:
        """Remember something small that changes, whole or not at all; the last writer wins.

        Nothing that is mined depends on a note: a lost one costs work, never a result.
        """
        target = self._path(f"{NOTES}/{name}.json")
        body = canonical_json(dict(value)) + b"\n"
        if not self._local:
            self.fs.pipe_file(target, body)
            return
        partial = Path(f"{target}.{uuid.uuid4().hex}")
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(body)
            _fsync(partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def drop_note(self, name: str) -> None:
        """Forget what was noted under ``name``."""
        self.remove(f"{NOTES}/{name}.json")

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop) of a file: one request."""
        body: bytes = self.fs.cat_file(self._path(path), start=start, end=stop)
        return body

    def local_copy(self, path: str, entry: StoredFile, *, anew: bool = False) -> Path:
        """Return a local path for a stored file, fetching it once per machine if it is remote."""
        if self._local:
            return Path(self._path(path))
        target = cache_folder() / f"{entry.sha256}{PurePosixPath(path).suffix}"
        if anew or not target.exists() or target.stat().st_size != entry.size:
            partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
            try:
                self.fs.get_file(self._path(path), str(partial))
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
        else:
            used(target)
        return target

    def _path(self, path: str) -> str:
        return f"{self._base.rstrip('/')}/{path}"

    def _put(self, address: Address, draft: Draft, name: str) -> dict[str, object]:
        local = draft.folder / name
        digest = sha256_file(local)
        pure = PurePosixPath(name)
        stored = str(pure.with_name(f"{pure.stem}.{digest[:12]}{pure.suffix}"))
        size = local.stat().st_size
        target = self._path(f"{address.path}/{stored}")
        if self._local:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            _fsync(local)
            local.replace(target)  # atomic, and nothing is copied
        else:
            self.fs.put_file(str(local), target)
        return {"path": stored, "size": size, "sha256": digest}

    def _publish(self, address: Address, record: Mapping[str, Any]) -> None:
        """Create ``record.json`` if there is none; a lost race is a win for both.

        A reply can be lost although the write took place, so the record is read back before an
        error is believed: ours, which the writer's id tells, or another's that is whole. A record
        whose files are gone is no artifact, and is replaced.
        """
        target = self._path(f"{address.path}/{RECORD}")
        body = _sealed(record)
        if self._read_record(address.path) is not None:
            return  # decides nothing between two at once, but a store may ignore the condition
        try:
            self._create(target, body)
        except Exception:
            if self._read_record(address.path) is not None:
                return
            if not self.fs.exists(target):
                raise
            self._create(target, body, replace=True)

    def _create(self, target: str, body: bytes, *, replace: bool = False) -> None:
        """Write a small file that appears whole, and only if absent unless ``replace``."""
        if not self._local:
            try:
                self.fs.pipe_file(target, body, mode="overwrite" if replace else "create")
            except Exception:
                if self._content(target) != body:  # else only the reply was lost: it is ours
                    raise
            return
        final = Path(target)
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
        try:
            with partial.open("wb") as stream:
                stream.write(body)
                stream.flush()
                os.fsync(stream.fileno())
            if replace:
                partial.replace(final)
            else:
                os.link(partial, final)  # fails if it exists, unlike a rename
        finally:
            partial.unlink(missing_ok=True)

    def _read_record(self, path: str) -> dict[str, Any] | None:
        """Return the record of an artifact that is whole."""
        record = self._parse_record(path)
        for entry in () if record is None else record["files"].values():
            if self._size(f"{path}/{entry['path']}") != entry["size"]:
                return None
        return record

    def _size(self, path: str) -> int | None:
        try:
            size: int = self.fs.size(self._path(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return size

    def _content(self, target: str) -> bytes | None:
        try:
            body: bytes = self.fs.cat_file(target)
        except FileNotFoundError:
            return None
        return body

    def _parse_record(self, path: str) -> dict[str, Any] | None:
        folder = self._path(path)
        try:
            self.fs.invalidate_cache(folder)
            body = self.fs.cat_file(f"{folder}/{RECORD}")
            record: Any = json.loads(body)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise CorruptArtifactError(
                f"{self.uri(path)}/{RECORD} is no JSON",
                remedy="delete that folder and run the same command again",
            ) from error
        schema = record.get("schema") if isinstance(record, dict) else None
        if schema not in (UNSEALED, SCHEMA):
            raise InputError(
                f"{self.uri(path)} has schema version {schema}",
                expected=f"version {UNSEALED} or {SCHEMA}",
                remedy="use the b3 version that wrote it, or another store.root",
            )
        if schema == SCHEMA and _sealed(record) != body:
            raise CorruptArtifactError(
                f"{self.uri(path)}/{RECORD} is not what was written: its own sha256 differs",
                remedy="delete that folder and run the same command again",
            )
        if not _names_are_sound(record):
            raise CorruptArtifactError(
                f"{self.uri(path)}/{RECORD} names files outside its folder, or no sha256 of theirs",
                remedy="do not use that store before it is known who wrote this",
            )
        whole: dict[str, Any] = record
        return whole


def _names_are_sound(record: Mapping[str, Any]) -> bool:
    """Tell whether every file of a record lies below its folder: anybody may write a record."""
    try:
        return all(
            _is_below(name) and _is_below(entry["path"]) and _SHA256.fullmatch(entry["sha256"])
            for name, entry in record["files"].items()
        )
    except (KeyError, TypeError, AttributeError):
        return False


def _is_below(name: str) -> bool:
    pure = PurePosixPath(name)
    return bool(name) and not pure.is_absolute() and ".." not in pure.parts and "\\" not in name


def open_artifact(uri: str) -> Artifact:
    """Open the artifact whose folder is ``uri`` (``<root>/<dataset>/<stage>/<fingerprint>``).

    Raises
    ------
    InputError
        There is no whole artifact.
    """
    parts = uri.rstrip("/").removesuffix(f"/{RECORD}").rsplit("/", 3)
    artifact = None
    if len(parts) == 4:
        artifact = ArtifactStore(parts[0]).find(Address(*parts[1:]))
    if artifact is None:
        raise InputError(
            f"no whole artifact at {uri}",
            expected="<root>/<dataset>/<stage>/<fingerprint> with its record.json",
            remedy="take the URI from the output of b3 mine",
        )
    return artifact


def _sealed(record: Mapping[str, Any]) -> bytes:
    """Encode a record together with the sha256 of the rest of it.

    A record has this encoding and no other: whichever byte of it is flipped, reading it shows that.
    """
    rest = json.loads(json.dumps({key: record[key] for key in record if key != "sha256"}))
    sealed = rest | {"sha256": hashlib.sha256(_encoded(rest)).hexdigest()}
    return _encoded(sealed)


def _encoded(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"


def _fsync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
