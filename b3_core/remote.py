"""A file system over a network, whose calls are tried again: the one layer that does so.

    call -> "is not there", "is there already"                    -> raised at once, as it is
         -> other permanent error (403, no such bucket)           -> RefusedError at once
         -> transient error, or fewer bytes than the object has   -> wait, call again
         -> six times transient                                   -> UnreachableError

botocore and s3fs have retries of their own, one inside the other. They are off: with them a request
that cannot succeed would be sent 5 x 5 x 6 times, and yet neither retries 409 nor compares
sizes.
"""

import functools
import io
import os
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from b3_core.errors import RefusedError, UnreachableError, reason

ATTEMPTS = 6
FIRST_WAIT = 0.2  # seconds at most; each further wait is three times as long, 24 s in all
BLOCK = 4 << 20  # bytes of a request, where a large file is read in parts
BLOCKS = 8  # how many of them an open file keeps: parquet reads a few columns by turns
_STATUS = {408, 409, 429}  # 409 on a conditional write means: two at once, try again
_CODES = {
    "BadDigest",
    "IncompleteBody",
    "InternalError",
    "NoSuchUpload",  # its end came through, but not the reply: it is there no more
    "RequestTimeout",
    "SlowDown",
    "XAmzContentSHA256Mismatch",
}
_VERBS = {
    "cat_file": "read",
    "get_file": "read",
    "put_file": "write",
    "pipe_file": "write",
    "rm_file": "delete",
    "ls": "list",
    "find": "list",
}
_CHANGING = {"put_file", "pipe_file"}  # what they write cannot be missing: the bucket is
# Not the global generator: igraph draws from it, and a retry must not change what is mined.
_jitter = random.SystemRandom()


class ShortTransferError(OSError):
    """Fewer bytes came through than there are."""


class Remote:
    """An fsspec file system; every call is tried again where that can help.

    Repeating is safe, since the store's files are named by content and its records are created
    only if absent.

    Parameters
    ----------
    fs
        What does the work, with retries of its own off.
    transient
        Errors without an HTTP status that may be gone the next time.
    permanent
        Errors of the library that talks to the server; others are no refusals.
    reading
        How to read a small file, in the file system's own words.
    """

    def __init__(
        self,
        fs: Any,
        transient: tuple[type[BaseException], ...] = (),
        permanent: tuple[type[BaseException], ...] = (),
        reading: Mapping[str, object] | None = None,
    ) -> None:
        self._fs = fs
        self._reading = reading or {}
        self._permanent = permanent
        self._transient: tuple[type[BaseException], ...] = (
            ConnectionError,
            TimeoutError,
            ShortTransferError,
            *transient,
        )

    def __getattr__(self, name: str) -> Any:
        """Return a method of the file system, with patience."""
        found = getattr(self._fs, name)
        if not callable(found):
            return found
        absent = name not in _CHANGING
        return functools.partial(self._asked, name, found, absent=absent)

    def uri(self, stored: str) -> str:
        """Name a file to a person, without what could hold a secret."""
        scheme, _, rest = str(self._fs.unstrip_protocol(stored)).partition("://")
        host, slash, path = rest.split("?", 1)[0].partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"

    def cat_file(self, stored: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return all bytes of a file, or [start, end) of a file that has so many."""

        def read() -> bytes:
            if start is not None and end is not None:
                part: bytes = self._fs.cat_file(stored, start=start, end=end)
                if len(part) != end - start:
                    raise ShortTransferError(f"{len(part)} bytes here, {end - start} asked for")
                return part
            body: bytes = self._fs.cat_file(stored, **self._reading)
            self._compare(stored, len(body))
            return body

        # Who reads a part knows that the file is there.
        whole: bytes = self._named("cat_file", read, stored, absent=start is None)
        return whole

    def open_blocks(self, stored: str, size: int) -> "Ranged":
        """Open a file of so many bytes, to be read by requests of ``BLOCK`` bytes.

        Whatever is read, memory holds ``BLOCKS`` of them at most, and a block that is read from
        again is not asked for again while it is among them.
        """

        @functools.lru_cache(BLOCKS)
        def block(first: int) -> bytes:
            return self.cat_file(stored, start=first, end=min(first + BLOCK, size))

        def read(start: int, stop: int) -> bytes:
            firsts = range(start - start % BLOCK, stop, BLOCK)
            return b"".join(block(first)[max(start - first, 0) : stop - first] for first in firsts)

        return Ranged(read, size)

    def get_file(self, stored: str, local: str) -> None:
        """Fetch a whole file."""

        def fetch() -> None:
            self._fs.get_file(stored, local)
            self._compare(stored, os.path.getsize(local))

        self._named("get_file", fetch, stored, absent=False)

    def put_file(self, local: str, stored: str) -> None:
        """Upload a whole file."""

        def upload() -> None:
            self._fs.put_file(local, stored)
            self._compare(stored, os.path.getsize(local))

        self._named("put_file", upload, stored, absent=False)

    def _compare(self, stored: str, size: int) -> None:
        self._fs.invalidate_cache(stored)
        there = self._fs.size(stored)
        if there != size:
            raise ShortTransferError(f"{size} bytes here, {there} in the store")

    def _asked(
        self, method: str, call: Callable[..., Any], *args: Any, absent: bool, **kwargs: Any
    ) -> Any:
        stored = args[0] if args and isinstance(args[0], str) else ""
        return self._named(method, functools.partial(call, *args, **kwargs), stored, absent=absent)

    def _named(self, method: str, call: Callable[[], Any], stored: str, *, absent: bool) -> Any:
        """Call with patience; name the file in what cannot be helped.

        Parameters
        ----------
        absent
            That there is no such file is an answer, and no refusal.
        """
        try:
            return self._tried(call)
        except UnreachableError as error:
            where = self.uri(stored)
            raise UnreachableError(
                f"{where}: {error.problem}", remedy=error.remedy
            ) from error.__cause__
        except Exception as error:
            if not self._refuses(error, absent=absent):
                raise
            verb = _VERBS.get(method, "look at")
            expected, remedy = "", "check its permissions and, for s3://, the AWS_* environment"
            if isinstance(error, PermissionError):
                expected = f"permission to {verb}"
            if isinstance(error, FileNotFoundError):
                expected = "its bucket to be there" if verb == "write" else "it to be there"
                remedy = "see what removed it; what is finished elsewhere is kept"
            raise RefusedError(
                f"the server refused to {verb} {self.uri(stored)}: {reason(error)}",
                expected=expected,
                remedy=remedy,
            ) from error

    def _refuses(self, error: Exception, *, absent: bool) -> bool:
        """Tell whether an error is a server's refusal, not an answer that callers wait for."""
        if isinstance(error, FileNotFoundError):
            return not absent and error.filename is None
        if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
            return False
        status, code = _answer(error)
        if status:
            return status != 412 and code != "PreconditionFailed"
        ours = isinstance(error, PermissionError) and error.filename is None
        return ours or isinstance(error, self._permanent)

    def _tried(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call(*args, **kwargs)
            except Exception as error:
                if not self._may_pass(error):
                    raise
                if attempt == ATTEMPTS:
                    raise UnreachableError(
                        f"the server failed {ATTEMPTS} times: {reason(error)}",
                        remedy="run the same command again: what is finished is kept",
                    ) from error
            longest = FIRST_WAIT * 3 ** (attempt - 1)
            time.sleep(_jitter.uniform(longest / 2, longest))
        raise AssertionError("unreachable")

    def _may_pass(self, error: Exception) -> bool:
        """Tell whether the same call can succeed later."""
        status, code = _answer(error)
        if status:
            return status >= 500 or status in _STATUS or code in _CODES
        return isinstance(error, self._transient)


def _answer(error: Exception) -> tuple[int, str]:
    """Return HTTP status and S3 error code of the answer that an error is about; 0 if of none."""
    for cause in (error, error.__cause__):  # s3fs raises OSError from botocore's error
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return status or 400, response.get("Error", {}).get("Code", "")
    return 0, ""


class Ranged(io.RawIOBase):
    """A file of which parts are read where it is stored, a request a read.

    Parameters
    ----------
    read
        Returns the bytes [start, stop) of the file.
    size
        Bytes of the file.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read, self._size = read, size
        self._at = 0

    def readable(self) -> bool:  # noqa: D102 - as for any file
        return True

    def seekable(self) -> bool:  # noqa: D102
        return True

    def tell(self) -> int:  # noqa: D102
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:  # noqa: D102
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def read(self, size: int | None = -1) -> bytes:  # noqa: D102
        stop = self._size if size is None or size < 0 else min(self._at + size, self._size)
        if stop <= self._at:
            return b""
        body = self._read(self._at, stop)
        self._at += len(body)
        return body

    def readinto(self, buffer: Any) -> int:  # noqa: D102
        with memoryview(buffer).cast("B") as view:
            body = self.read(len(view))
            view[: len(body)] = body
        return len(body)


def open_fs(root: str) -> tuple[Any, str]:
    """Return the file system of a local folder or fsspec URI, and the path in it.

    Raises
    ------
    ValueError, ImportError
        There is no such kind of file system, or its package is missing.
    """
    if not root.startswith(("s3://", "s3a://")):
        fs, base = fsspec.core.url_to_fs(root)
        alone = isinstance(fs, LocalFileSystem | MemoryFileSystem)
        return (fs if alone else Remote(fs)), base
    from botocore import exceptions as boto  # noqa: PLC0415
    from s3fs.core import S3_RETRYABLE_ERRORS  # noqa: PLC0415 - slow, and only S3 needs it

    fs, base = fsspec.core.url_to_fs(
        root,
        use_listings_cache=False,  # another process may have written since
        config_kwargs={"retries": {"total_max_attempts": 1}},
    )
    fs.retries = 1
    damaged = boto.FlexibleChecksumError, boto.IncompleteReadError
    # Else s3fs asks for the size first, to fetch large files in parts: a third of the requests.
    reading = {"max_concurrency": 1}
    transient = boto.ConnectionError, *damaged, *S3_RETRYABLE_ERRORS
    return Remote(fs, transient, (boto.BotoCoreError,), reading), base
