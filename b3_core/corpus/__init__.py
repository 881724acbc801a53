"""The demo's corpora: real pairs out of what is installed beside this project."""

from b3_core.corpus import code, prose
from b3_core.corpus.parts import Corpus, Kind, Part, corpus_fingerprint, part_of, read_corpus

__all__ = [
    "KINDS",
    "VERSION",
    "Corpus",
    "Kind",
    "Part",
    "corpus_fingerprint",
    "part_of",
    "read_corpus",
]

VERSION = 1

KINDS: dict[str, Kind] = {"code": code.KIND, "prose": prose.KIND}
