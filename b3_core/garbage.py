"""What killed and failed runs leave in a store: found by age and by what no record names.

    all files -> by artifact -> those that its record does not name, or all if it has none
              -> drafts, probes, and what Ray Train noted of its groups

A run that is at work has such files too, so only old ones count; and only what lies where artifacts
do, below a fingerprint: a folder may hold other things beside a store. Finished artifacts are never
touched, whether or not anything still needs them, but for a checkpoint whose student is there, and
for the vectors of a student that is gone. Each group of Ray Train leaves a folder of its own, which
counts once nothing in it has changed for as long.
"""

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from b3_core.artifacts import Address, is_fingerprint
from b3_core.checkpoints import STAGE
from b3_core.kept import is_kept
from b3_core.store import DRAFTS, PROBE, RAY, RECORD, ArtifactStore

_ADDRESS = 3  # dataset, stage, fingerprint
#: What b3_core.ray_train calls a group; beside it may be files of others.
_GROUP = re.compile("[0-9a-f]{32}")


class Orphan(NamedTuple):
    """A file that nothing refers to."""

    path: str
    """Below the store's root."""
    size: int
    why: str
    changed: float
    """Seconds since the epoch."""


def find_orphans(
    store: ArtifactStore, *, older_than: float, now: float | None = None
) -> list[Orphan]:
    """List the orphans whose last change is more than ``older_than`` seconds ago.

    Parameters
    ----------
    now
        Seconds since the epoch; the present by default.

    Raises
    ------
    CorruptArtifactError, InputError
        A record cannot be read: what its artifact needs is not known.
    """
    latest = (time.time() if now is None else now) - older_than
    files = store.files()
    # A group that goes on writes to its folder, whose first file is as old as the group.
    changed_of: dict[str, float] = {}
    for path in filter(_group_of, files):
        group = _group_of(path)
        changed_of[group] = max(changed_of.get(group, 0.0), _changed(files[path]))
    return [
        Orphan(path, int(files[path]["size"]), why, _changed(files[path]))
        for path, why in sorted(_unnamed(store, files))
        if changed_of.get(_group_of(path), _changed(files[path])) < latest
    ]


def remove(store: ArtifactStore, orphans: Sequence[Orphan]) -> None:
    """Delete orphans, each unless it is gone already, or was written again since it was listed."""
    for orphan in orphans:
        with contextlib.suppress(FileNotFoundError):
            # Some servers list milliseconds, and say seconds of one file.
            if abs(_changed(store.info(orphan.path)) - orphan.changed) < 1:
                store.remove(orphan.path)


def _unnamed(
    store: ArtifactStore, files: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    artifacts: dict[str, set[str]] = {}
    for path in files:
        parts = path.split("/")
        if parts[0] == DRAFTS:
            yield path, "a draft that was never finished"
        elif parts[0].startswith(PROBE):
            yield path, "a probe of whether the store can be written"
        elif _group_of(path):
            # Ray reads it when a group starts and is handed checkpoints, which b3's are not.
            yield path, "a note of Ray Train about a group of workers"
        elif len(parts) > _ADDRESS and is_fingerprint(parts[_ADDRESS - 1]):
            artifacts.setdefault("/".join(parts[:_ADDRESS]), set()).add(path)
    for folder, found in artifacts.items():
        if f"{folder}/{RECORD}" not in found:
            yield from ((path, "its artifact has no record") for path in found)
            continue
        if why := _spent(store, folder, files):
            yield from ((path, why) for path in found)
            continue
        named = {f"{folder}/{name}" for name in store.named_files(folder)} | {f"{folder}/{RECORD}"}
        yield from ((path, "its artifact's record does not name it") for path in found - named)


def _group_of(path: str) -> str:
    """Return which group of Ray Train a file is of; blank if of none."""
    first, _, rest = path.partition("/")
    group, _, name = rest.partition("/")
    return group if first == RAY and name and _GROUP.fullmatch(group) else ""


def _spent(store: ArtifactStore, folder: str, files: Mapping[str, object]) -> str:
    """Say why nothing will ask for an artifact again; blank if something may."""
    address = Address(*folder.split("/"))
    if address.stage != STAGE and not is_kept(address):
        return ""
    artifact = store.find(address)
    student = None if artifact is None else artifact.record["lineage"]["student"]
    is_there = f"{address.dataset}/student/{student}/{RECORD}" in files
    if address.stage == STAGE:
        return "the checkpoint of a student that is finished" if is_there else ""
    return "" if is_there else "vectors of a student that is gone"


def _changed(info: Mapping[str, Any]) -> float:
    """Return when a file was changed, as fsspec's file systems say it; now if they do not."""
    for key in ("mtime", "LastModified", "created"):
        if key in info:
            when = info[key]
            return when.timestamp() if isinstance(when, datetime) else float(when)
    return time.time()  # never old
