"""The demo's corpora: real pairs out of what is installed beside this project.

``code`` and ``prose`` are read from files of many packages (``parts``), the others are made of what
one package carries (``made``).
"""

from pathlib import Path

from b3_core.corpus import code, digits, icons, parts, prose, tables
from b3_core.corpus.made import MadeKind, made_fingerprint, make_corpus
from b3_core.corpus.parts import Corpus, Kind, Part, part_of
from b3_core.progress import Progress, silent

__all__ = [
    "KINDS",
    "VERSION",
    "Corpus",
    "Kind",
    "MadeKind",
    "Part",
    "corpus_fingerprint",
    "part_of",
    "read_corpus",
]

VERSION = 1

KINDS: dict[str, Kind | MadeKind] = {
    "code": code.KIND,
    "prose": prose.KIND,
    "icons": icons.KIND,
    "digits": digits.KIND,
    "tables": tables.KIND,
}


def corpus_fingerprint(kind: Kind | MadeKind, root: Path | None = None) -> str:
    """Say what a corpus would be read from, without reading it: hex sha256.

    Raises
    ------
    InputError
        A package that a corpus is made of is not installed.
    """
    if isinstance(kind, MadeKind):
        return made_fingerprint(kind)
    return parts.corpus_fingerprint(kind, root)


def read_corpus(
    kind: Kind | MadeKind,
    pairs: int = 20_000,
    *,
    heldout: int = 4_000,
    validation: int = 2_000,
    workers: int = 2,
    root: Path | None = None,
    progress: Progress = silent,
) -> Corpus:
    """Read a corpus in three parts, as :func:`parts.read_corpus` and :func:`made.make_corpus` do.

    Parameters
    ----------
    pairs, heldout, validation
        Most pairs of the training, test and validation parts.
    workers, root
        As for :func:`parts.read_corpus`; a kind that is made needs neither.
    progress
        Told how much is done.

    Raises
    ------
    InputError
        There is no pair for one of the parts, or a package is not installed.
    """
    caps = {"heldout": heldout, "validation": validation}
    if isinstance(kind, MadeKind):
        return make_corpus(kind, pairs, **caps, progress=progress)
    return parts.read_corpus(kind, pairs, **caps, workers=workers, root=root, progress=progress)
