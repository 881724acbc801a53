"""What is special in a path: where its pattern begins, and which names are no data."""

import re


def fixed(pattern: str) -> str:
    """Return what comes before the first special character of a glob; all, if it is none."""
    return re.split(r"[*?[]", pattern, maxsplit=1)[0]


def fixed_folder(pattern: str) -> str:
    """Return the folder that everything a glob matches is below."""
    return fixed(pattern).rpartition("/")[0]


def is_hidden(folder: str) -> bool:
    """Say whether a folder holds no rows by its name: ``_temporary``, ``.b3``; not ``_lang=en``."""
    return folder.startswith(".") or (folder.startswith("_") and "=" not in folder)
