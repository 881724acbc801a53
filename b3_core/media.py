"""Images and videos of a dataset: read below one folder, decoded within limits, looked at apart.

    file -> MediaRoot.read -> bytes -> decode_image  -> RGB image
                                    -> decode_frames -> RGB images, uniform over a video's length
    files -> look_at: all of that in processes of their own -> digest, or what is wrong

Whoever wrote the files is not trusted. Nothing outside the root is opened, and decoding is bounded
(:mod:`b3_core.pixels`). But decoders have faults of their own, so what nobody has looked at is for
:func:`look_at`: there, what crashes, hangs or takes too much memory costs one medium.
"""

import contextlib
import errno
import hashlib
import importlib.util
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from b3_core import isolated
from b3_core.below import open_below, parts_of
from b3_core.errors import InputError
from b3_core.pixels import MediaError, MediaLimits, decode_frames, decode_image
from b3_core.progress import Progress, silent
from b3_core.remote import open_fs

__all__ = [
    "Item",
    "Kind",
    "Look",
    "MediaError",
    "MediaLimits",
    "MediaRoot",
    "decode_frames",
    "decode_image",
    "look_at",
    "media_digest",
]

Kind = Literal["", "image", "video"]

_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE}  # no fault of a file
_SMALL = 64  # px of a frame that is only looked at


@dataclass(frozen=True)
class Item:
    """One input of an encoder."""

    text: str = ""
    kind: str = ""
    """``image`` or ``video``: the medium beside the text; empty for text alone."""
    file: str = ""
    """Its path below the media root, with forward slashes."""


def media_digest(content: bytes) -> str:
    """Name a medium by its bytes: hex blake2b-128."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@dataclass(frozen=True)
class Look:
    """What was found of a medium."""

    digest: str
    """Hex blake2b, 128 bits, of its bytes; empty if they were not read, or the process ended."""
    fault: str
    """Empty, or what is wrong with it."""


class MediaRoot:
    """The only place that media are read from.

    Parameters
    ----------
    root
        A local folder, or ``s3://bucket/prefix``.
    limits
        How large a file may be.

    Raises
    ------
    InputError
        There is no such folder, or no such kind of place.
    """

    def __init__(self, root: str, limits: MediaLimits = MediaLimits()) -> None:  # noqa: B008 - frozen
        self.root, self.limits = root, limits
        scheme, _, rest = root.partition("://")
        self._fs: Any = None
        if not rest:
            self._base = os.path.realpath(root)
            there = os.path.isdir(self._base)
        elif scheme in ("s3", "s3a") and "@" not in rest.split("/", 1)[0]:
            self._fs, self._base = open_fs(root)
            there = self._is_folder()
        else:
            secret = "@" in rest.split("/", 1)[0]
            raise InputError(
                f"media root {'carries credentials' if secret else f'is a {scheme}:// address'}",
                expected="a local folder, or s3://bucket/prefix",
                remedy="credentials come from the AWS_* environment only" if secret else "",
            )
        if not there:
            raise InputError(
                f"media root {root} is no folder",
                expected="a local folder, or s3://bucket/prefix",
                remedy="check the path",
            )

    def __reduce__(self) -> tuple[type["MediaRoot"], tuple[str, MediaLimits]]:
        return MediaRoot, (self.root, self.limits)

    def read(self, file: str, *, kind: str = "video", start: int = 0, size: int = -1) -> bytes:
        """Return a file's bytes, or a range of them.

        Parameters
        ----------
        file
            Path below the root, with forward slashes.
        kind
            ``image`` or ``video``: how large it may be.
        start, size
            Of the range; to the end of the file if ``size`` is negative.

        Raises
        ------
        MediaError
            It is no plain path, leads out of the root, is no regular file, is too large, or ends
            before the range does.
        UnreachableError, RefusedError
            The server did not do what it was asked, whatever the file.
        """
        parts = parts_of(file)
        if self._fs is not None:
            key = "/".join([self._base.rstrip("/"), *parts])
            return self._read_remote(key, kind, start, size)
        try:
            with open(open_below(self._base, parts), "rb") as stream:
                info = os.fstat(stream.fileno())
                if not stat.S_ISREG(info.st_mode):  # no longer what it was a moment ago
                    raise MediaError("is no regular file")
                wanted = self._wanted(info.st_size, kind, start, size)
                stream.seek(start)
                # It may grow: never more than was just seen to be allowed.
                content = stream.read(wanted if size >= 0 else wanted + 1)
        except OSError as error:
            if error.errno in _OURS:
                raise
            gone = error.errno in (errno.ENOENT, errno.ENOTDIR)
            raise MediaError(
                "is not there" if gone else f"cannot be read: {error.strerror}"
            ) from error
        if len(content) != wanted:
            raise MediaError("was written to while it was read")
        return content

    def _wanted(self, there: int, kind: str, start: int, size: int) -> int:
        """Return how many bytes to read of a file that has ``there``."""
        wanted = size if size >= 0 else there - start
        if not 0 <= start <= start + wanted <= there:
            raise MediaError(f"ends at byte {there}, before the range that it is")
        self.limits.check_bytes(wanted, kind)
        return wanted

    def _is_folder(self) -> bool:
        try:
            return bool(self._fs.info(self._base)["type"] == "directory")
        except FileNotFoundError:
            return False

    def _read_remote(self, key: str, kind: str, start: int, size: int) -> bytes:
        try:
            info = self._fs.info(key)
        except FileNotFoundError:
            raise MediaError("is not there") from None
        if info["type"] != "file":
            raise MediaError("is no regular file")
        wanted = self._wanted(info["size"], kind, start, size)
        if not wanted:
            return b""
        content: bytes = self._fs.cat_file(key, start=start, end=start + wanted)
        return content


def look_at(
    root: str,
    media: Sequence[tuple[Any, ...]],
    *,
    limits: MediaLimits = MediaLimits(),  # noqa: B008 - frozen
    workers: int = 1,
    frames: int = 8,
    seconds: float = 60.0,
    memory: int = 2 << 30,
    progress: Progress = silent,
) -> list[Look]:
    """Read and decode media wholly, in processes of their own.

    Parameters
    ----------
    root
        As of :class:`MediaRoot`.
    media
        Kind and file of each, or kind, file, start and size, as :meth:`MediaRoot.read` has them;
        one that comes again is not looked at again.
    limits
        What is refused.
    workers
        Processes. They change nothing in what is found.
    frames
        Of a video that are decoded.
    seconds
        What a medium may take.
    memory
        Bytes of address space that decoding may take (Linux).
    progress
        Told how many media, each once, were looked at.

    Returns
    -------
    list of Look
        In the order of ``media``.

    Raises
    ------
    InputError
        There is no such root, or a package that decodes is missing.
    UnreachableError, RefusedError
        The server did not do what it was asked, whatever the file.
    """
    MediaRoot(root, limits)  # what is wrong with it is no fault of a medium
    check_installed({kind for kind, *_ in media})
    once = list(dict.fromkeys(media))
    found = isolated.ask(
        "b3_core.media:_looking",
        {"root": root, "limits": asdict(limits), "frames": frames},
        once,
        workers=workers,
        seconds=seconds,
        memory=memory,
        progress=progress,
    )
    looks = {
        medium: Look("", said.reason) if isinstance(said, isolated.Ended) else Look(*said)
        for medium, said in zip(once, found, strict=True)
    }
    return [looks[medium] for medium in media]


def check_installed(kinds: set[str]) -> None:
    """Raise InputError if a package that decodes these kinds of media is missing."""
    for kind, package, name in (("image", "PIL", "pillow"), ("video", "av", "av")):
        if kind in kinds and importlib.util.find_spec(package) is None:
            raise InputError(
                f"the package {name} is not installed",
                expected=f"it, to decode {kind}s",
                remedy="pip install 'b3-batches[vision]'",
            )


def _looking(settings: Any) -> Callable[[Sequence[Any]], tuple[str, str]]:
    """Return what looks at one medium: its digest, and what is wrong with it."""
    limits = MediaLimits(**settings["limits"])
    root = MediaRoot(settings["root"], limits)
    for module in ("PIL.Image", "av"):
        with contextlib.suppress(ImportError):  # before memory is capped
            importlib.import_module(module)

    def look(medium: Sequence[Any]) -> tuple[str, str]:
        kind, file, *place = medium
        start, size = place or (0, -1)
        digest = ""
        try:
            content = root.read(file, kind=kind, start=start, size=size)
            digest = media_digest(content)
            if kind == "image":
                decode_image(content, limits=limits)
            elif kind == "video":
                decode_frames(content, frames=settings["frames"], side=_SMALL, limits=limits)
            else:
                raise MediaError(f"is neither image nor video but {kind!r}")
        except MediaError as error:
            return digest, str(error)
        return digest, ""

    return look
