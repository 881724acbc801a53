"""Pairs out of what is installed beside us, in three parts that share no package and no text.

    RECORD files -> sources by part -> pairs (read in parallel) -> no text twice

Whole packages are held out, since texts of one package resemble one another, and a text of a
held-out part is in no other part. Held-out parts are read first: which pairs they hold does not
depend on how many are trained on.
"""

import csv
import gc
import hashlib
import multiprocessing
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import pyarrow as pa

from b3_core.errors import InputError
from b3_core.progress import Progress, silent

SCHEMA = pa.schema([(name, pa.string()) for name in ("query", "positive", "package", "where")])

Part = Literal["train", "validation", "test"]

QUERY_CHARACTERS = 500
POSITIVE_CHARACTERS = 2_000

#: Shares of the packages. Package sizes differ a thousandfold, so the salt was chosen for held-out
#: parts that hang on no single package, whether or not the development tools are installed.
_SHARES: dict[Part, float] = {"test": 0.1, "validation": 0.1, "train": 0.8}
_SALT = "101:"

_FILES_PER_TASK = 32


class Pair(NamedTuple):
    """A query, its positive, and where in its file they stand."""

    query: str
    positive: str
    where: str


@dataclass(frozen=True)
class Source:
    """A file that an installed distribution lists in its RECORD."""

    path: str
    checksum: str
    """As the RECORD has it: ``sha256=`` and base64."""
    package: str
    """What is held out as a whole."""

    @property
    def order(self) -> bytes:
        """Sorting key: files of all packages mixed, the same way everywhere."""
        return hashlib.sha256(self.path.encode()).digest()


@dataclass(frozen=True)
class Kind:
    """A kind of corpus: which files it is in, and how pairs are read from one."""

    dataset: str
    """Names the dataset's folder in the store."""
    sources: Callable[[Path], list[Source]]
    """Lists the files below a folder of installed packages, in the order they are visited."""
    read: Callable[[str], list[Pair] | None]
    """Returns the pairs of a file, or None if it cannot be read; called in another process."""
    wanted: str
    """What a pair is, for messages."""
    task: str = "retrieval"
    """The dataset's task, as CONFIG names it."""

    @property
    def columns(self) -> dict[str, str]:
        """What is in the columns, as CONFIG says it."""
        return {"query": "query", "positive": "positive"}


@dataclass(frozen=True, eq=False)
class Corpus:
    """Pairs in three parts, with columns query, positive, package and where (``file:place``)."""

    train: pa.Table
    validation: pa.Table
    test: pa.Table
    skipped: int
    """Files passed over: too large, missing, or not what their name says."""


def corpus_fingerprint(kind: Kind, root: Path | None = None) -> str:
    """Say what is installed, without reading it.

    Returns
    -------
    str
        Hex sha256 over the sorted (path, checksum) pairs of the kind's sources.
    """
    listed = sorted((source.path, source.checksum) for source in kind.sources(_folder(root)))
    return hashlib.sha256("".join(f"{p}\0{s}\n" for p, s in listed).encode()).hexdigest()


def listed_files(root: Path, wanted: Callable[[Distribution], bool]) -> Iterator[tuple[str, str]]:
    """Yield (path, checksum) of the files below ``root`` that distributions' RECORDs list."""
    for distribution in distributions(path=[str(root)]):
        record = distribution.read_text("RECORD")
        if record is None or not wanted(distribution):
            continue
        for path, checksum, *_ in filter(None, csv.reader(record.splitlines())):
            inside = ".." not in PurePosixPath(path).parts and not PurePosixPath(path).is_absolute()
            if inside and checksum.startswith("sha256="):
                yield path, checksum


def part_of(package: str) -> Part:
    """Return the part that a package belongs to, by a hash of its name."""
    digest = hashlib.sha256(f"{_SALT}{package}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    for part, share in _SHARES.items():
        if position < share:
            return part
        position -= share
    return "train"


def read_corpus(
    kind: Kind,
    pairs: int = 20_000,
    *,
    heldout: int = 4_000,
    validation: int = 2_000,
    workers: int = 2,
    root: Path | None = None,
    progress: Progress = silent,
) -> Corpus:
    """Read pairs until every part is full or the packages are exhausted.

    Processes are spawned, so a script calls this below ``if __name__ == "__main__":``.

    Parameters
    ----------
    pairs, heldout, validation
        Most pairs of the training, test and validation parts. No package gives more than half of
        a held-out part, unless the others cannot fill it.
    workers
        Processes that read; the result does not depend on their number.
    root
        Folder of installed packages; this interpreter's site-packages by default.
    progress
        Told how many pairs are found.

    Raises
    ------
    InputError
        The packages have no pair for one of the parts.
    """
    folder = _folder(root)
    listed = kind.sources(folder)
    caps: dict[Part, int] = {"test": heldout, "validation": validation, "train": pairs}
    context = multiprocessing.get_context("spawn")
    # Syntax trees hold no cycles, and looking for some takes a third of the time.
    pool = ProcessPoolExecutor(workers, context, initializer=gc.disable)
    reader = _Reader(kind, folder, pool, progress, total=sum(caps.values()))
    try:
        parts = {
            part: reader.read(
                [source for source in listed if part_of(source.package) == part],
                cap,
                per_package=cap if part == "train" else -(-cap // 2),
            )
            for part, cap in caps.items()
        }
    finally:
        pool.shutdown(cancel_futures=True)
    for part, table in parts.items():
        if not len(table):
            raise InputError(
                f"the packages in {folder} have no {kind.wanted} for the {part} part",
                expected="an environment with the project's dependencies installed in it",
                remedy="install them, or run on a parquet file of your own",
            )
    return Corpus(**parts, skipped=reader.skipped)


def encodable(text: str) -> str:
    """Replace lone surrogates, which a text may spell but no file can hold."""
    return text.encode(errors="replace").decode()


class _Reader:
    """Collects pairs part by part, and remembers every text it has seen."""

    def __init__(
        self, kind: Kind, root: Path, pool: ProcessPoolExecutor, progress: Progress, *, total: int
    ):
        self.skipped = 0
        self._kind, self._root, self._pool = kind, root, pool
        self._progress, self._total = progress, total
        self._done = 0
        self._queries: set[str] = set()
        self._positives: set[str] = set()

    def read(self, sources: Sequence[Source], cap: int, *, per_package: int) -> pa.Table:
        kept: list[tuple[str, str, str, str]] = []
        spare: list[tuple[str, str, str, str]] = []
        given: Counter[str] = Counter()
        paths = [str(self._root / source.path) for source in sources]
        # Leaving the loop drops the iterator, which cancels what is not yet being read.
        results = self._pool.map(self._kind.read, paths, chunksize=_FILES_PER_TASK)
        for source, found in zip(sources, results, strict=True):
            self.skipped += found is None
            for pair in self._unseen(found or ()):
                where = f"{source.path}:{pair.where}"
                given[source.package] += 1
                target = kept if given[source.package] <= per_package else spare
                target.append((pair.query, pair.positive, source.package, where))
            self._progress(self._done + min(len(kept), cap), self._total)
            if len(kept) >= cap:
                break
        chosen = [*kept, *spare][:cap]
        self._done += len(chosen)
        columns: list[Sequence[str]] = [[row[i] for row in chosen] for i in range(len(SCHEMA))]
        return pa.table(columns, schema=SCHEMA)

    def _unseen(self, pairs: Iterable[Pair]) -> Iterable[Pair]:
        for pair in pairs:
            if pair.query in self._queries or pair.positive in self._positives:
                continue
            self._queries.add(pair.query)
            self._positives.add(pair.positive)
            yield pair


def _folder(root: Path | None) -> Path:
    return Path(sysconfig.get_path("purelib")) if root is None else root
