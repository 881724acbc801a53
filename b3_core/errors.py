"""Errors that reach a person: the value, what was expected, and what to do, in one line."""


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


class UnreachableError(B3Error, OSError):
    """The store did not do what it was asked, though asked again and again (exit code 1)."""


def reason(error: BaseException) -> str:
    """Return one line of a library's error, without the URL parts that could hold a secret."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.split("?", 1)[0]


def _rebuild(cls: type[B3Error], problem: str, expected: str, remedy: str) -> B3Error:
    return cls(problem, expected=expected, remedy=remedy)
