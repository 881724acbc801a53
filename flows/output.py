"""Files that commands write for a person: checked before the work, not after hours of it."""

import os
from pathlib import Path
from typing import Annotated

import typer

from b3_core.errors import InputError

Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


def check_output(file: Path, *, force: bool) -> None:
    """Refuse a file that is there, and a place where none can be written.

    Raises
    ------
    InputError
        It is there and ``force`` is not set, it is a folder, or its folder is not there, or not to
        be written to.
    """
    if file.is_dir():
        raise InputError(f"{file} is a folder", expected="a file", remedy="name one in it")
    if file.is_file() and not force:
        raise InputError(
            f"{file} is there already",
            expected="a new file",
            remedy="name another, or replace it with --force",
        )
    folder = file.absolute().parent
    may = os.access(file, os.W_OK) if file.exists() else os.access(folder, os.W_OK | os.X_OK)
    if not (folder.is_dir() and may):
        raise _unwritable(file, "its folder is not there, or not to be written to")


def write_output(file: Path, text: str) -> None:
    """Write a file.

    Raises
    ------
    InputError
        It cannot be written.
    """
    try:
        file.write_text(text, encoding="utf-8")
    except (OSError, UnicodeEncodeError) as error:
        raise _unwritable(file, getattr(error, "strerror", None) or error) from error


def _unwritable(file: Path, why: object) -> InputError:
    return InputError(
        f"{file} cannot be written: {why}",
        expected="a file in a folder that is there",
        remedy="name another",
    )
