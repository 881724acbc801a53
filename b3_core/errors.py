"""Errors that reach a person: the value, what was expected, and what to do, in one line."""

import os
import re

_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


class B3Error(Exception):
    """Anything this project raises on purpose.

    Parameters
    ----------
    problem
        What is wrong, naming the value: ``column 'answer' not in data.parquet``.
    expected
        What would have been right: ``one of: question, reply``.
    remedy
        The next action: ``set datasets[0].positive to one of them``.
    """

    exit_code = 1

    def __init__(self, problem: str, *, expected: str = "", remedy: str = "") -> None:
        self.problem, self.expected, self.remedy = problem, expected, remedy
        parts = [problem]
        if expected:
            parts.append(f"expected {expected}")
        if remedy:
            parts.append(remedy)
        super().__init__("; ".join(parts))

    def __reduce__(self) -> tuple[object, ...]:  # keyword arguments survive a trip through Ray
        return (_rebuild, (type(self), self.problem, self.expected, self.remedy))


class InputError(B3Error, ValueError):
    """The user's configuration, data or store cannot be used as it is (exit code 2)."""

    exit_code = 2


class CorruptArtifactError(B3Error, OSError):
    """Stored bytes are not the bytes that were recorded (exit code 1)."""


class StoppedError(B3Error):
    """Work ended early because it was told to, and goes on where it stopped (exit code 1)."""


class UnreachableError(B3Error, OSError):
    """The store did not do what it was asked, though asked again and again (exit code 1)."""


class RefusedError(B3Error, OSError):
    """The server will not do what it was asked, however often it is asked (exit code 1)."""


def carries_credentials(uri: str) -> bool:
    """Say whether a URI has a user or key in it, or a query, which may be a signature."""
    scheme, found, place = uri.partition("://")
    signed = scheme.startswith("http") and "?" in place
    return bool(found) and ("@" in place.split("/", 1)[0] or signed)


def reason(error: BaseException) -> str:
    """Return one line of a library's error, or what is wrong by one of ours.

    Without what could hold a secret: queries, users of URLs, credentials of the environment.
    """
    said = error.problem if isinstance(error, B3Error) else str(error)
    text = said.splitlines()[0] if said else type(error).__name__
    text = re.sub(r"//[^/\s@]*@", "//", text.split("?", 1)[0])
    for name in _SECRETS:
        if value := os.environ.get(name):
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", f"${name}", text)
    return text


def _rebuild(cls: type[B3Error], problem: str, expected: str, remedy: str) -> B3Error:
    return cls(problem, expected=expected, remedy=remedy)
