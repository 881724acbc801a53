"""The demo's corpus: (docstring, function body) pairs of the Python packages installed beside us.

    RECORD files -> sources by part -> functions (parsed in parallel) -> pairs, no text twice

The code is parsed, never imported or run. Whole top-level packages are held out, since functions of
one package resemble one another, and a text of a held-out part is in no other part. Held-out parts
are read first: which pairs they hold does not depend on how many are trained on.
"""

import ast
import csv
import gc
import hashlib
import multiprocessing
import re
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import pyarrow as pa

from b3_core.errors import InputError
from b3_core.progress import Progress, silent

VERSION = 1

SCHEMA = pa.schema([(name, pa.string()) for name in ("query", "positive", "package", "where")])

Part = Literal["train", "validation", "test"]

_OWN = "b3-batches"
#: Shares of the packages. Package sizes differ a thousandfold, so the salt was chosen for held-out
#: parts that hang on no single package, whether or not the development tools are installed.
_SHARES: dict[Part, float] = {"test": 0.1, "validation": 0.1, "train": 0.8}
_SALT = "101:"

_FILE_BYTES = 1_000_000
_QUERY_CHARACTERS = 500
_POSITIVE_CHARACTERS = 2_000
_FILES_PER_TASK = 32
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")  # where statements hold statements


class Function(NamedTuple):
    """A documented function: its docstring's first paragraph, its body, its first line."""

    query: str
    positive: str
    line: int


@dataclass(frozen=True)
class Source:
    """A Python file that an installed distribution lists in its RECORD."""

    path: str
    checksum: str
    """As the RECORD has it: ``sha256=`` and base64."""

    @property
    def package(self) -> str:
        """The top-level package or module."""
        return PurePosixPath(self.path).parts[0].removesuffix(".py")

    @property
    def order(self) -> bytes:
        """Sorting key: files of all packages mixed, the same way everywhere."""
        return hashlib.sha256(self.path.encode()).digest()


@dataclass(frozen=True, eq=False)
class Corpus:
    """Pairs in three parts, with columns query, positive, package and where (``file:line``)."""

    train: pa.Table
    validation: pa.Table
    test: pa.Table
    skipped: int
    """Files passed over: too large, missing, or no Python that this interpreter can parse."""


def corpus_fingerprint(root: Path | None = None) -> str:
    """Say which code is installed, without reading it.

    Returns
    -------
    str
        Hex sha256 over the sorted (path, checksum) pairs of :func:`list_sources`.
    """
    listed = sorted((source.path, source.checksum) for source in list_sources(root))
    return hashlib.sha256("".join(f"{p}\0{s}\n" for p, s in listed).encode()).hexdigest()


def list_sources(root: Path | None = None) -> list[Source]:
    """List the installed Python files, each once, in the order they are visited.

    Parameters
    ----------
    root
        Folder of installed packages; this interpreter's site-packages by default. This project's
        own files are left out.
    """
    found: dict[str, Source] = {}
    for distribution in distributions(path=[str(_folder(root))]):
        record = distribution.read_text("RECORD")
        if record is None or distribution.name == _OWN:
            continue
        for path, checksum, *_ in filter(None, csv.reader(record.splitlines())):
            inside = ".." not in PurePosixPath(path).parts and not PurePosixPath(path).is_absolute()
            if inside and path.endswith(".py") and checksum.startswith("sha256="):
                found.setdefault(path, Source(path, checksum))
    return sorted(found.values(), key=lambda source: source.order)


def part_of(package: str) -> Part:
    """Return the part that a top-level package belongs to, by a hash of its name."""
    digest = hashlib.sha256(f"{_SALT}{package}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    for part, share in _SHARES.items():
        if position < share:
            return part
        position -= share
    return "train"


def read_corpus(
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
        Processes that parse; the result does not depend on their number.
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
    listed = list_sources(folder)
    caps: dict[Part, int] = {"test": heldout, "validation": validation, "train": pairs}
    context = multiprocessing.get_context("spawn")
    # Syntax trees hold no cycles, and looking for some takes a third of the time.
    pool = ProcessPoolExecutor(workers, context, initializer=gc.disable)
    reader = _Reader(folder, pool, progress, total=sum(caps.values()))
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
                f"the packages in {folder} have no documented function for the {part} part",
                expected="an environment with the project's dependencies installed in it",
                remedy="install them, or run on a parquet file of your own",
            )
    return Corpus(**parts, skipped=reader.skipped)


def read_functions(path: str) -> list[Function] | None:
    """Return the documented functions of a Python file, or None if it cannot be parsed.

    A function counts if the first paragraph of its docstring has three words, and what follows the
    docstring is more than a stub: two lines and 30 characters. Both texts are cut to a length that
    encoders can take.
    """
    try:
        if Path(path).stat().st_size > _FILE_BYTES:
            return None
        with tokenize.open(path) as stream:
            text = stream.read()
        if '"""' not in text and "'''" not in text:
            return []  # without a docstring: parsing is nearly all the time
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SyntaxWarning: the code of others
            tree = ast.parse(text)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    lines = text.split("\n")
    nodes: list[ast.AST] = [tree]
    for node in nodes:  # grows while it is walked; expressions hold no function but lambdas
        for block in _BLOCKS:
            nodes.extend(getattr(node, block, ()))
    found = (_function(node, lines) for node in nodes)
    return [function for function in found if function is not None]


def _function(node: ast.AST, lines: Sequence[str]) -> Function | None:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    docstring = ast.get_docstring(node)
    paragraph = re.split(r"\n\s*\n", docstring.strip())[0].split() if docstring else []
    if len(paragraph) < 3 or all(_is_stub(statement) for statement in node.body[1:]):
        return None
    end = node.body[0].end_lineno
    if end is None or node.body[1].lineno == end:  # a second statement on the docstring's line
        return None
    indent = lines[node.body[1].lineno - 1][: node.body[1].col_offset]
    body = [line.removeprefix(indent).rstrip() for line in lines[end : node.end_lineno]]
    positive = "\n".join(body).strip("\n")
    if sum(map(bool, body)) < 2 or len(positive) < 30:
        return None
    return Function(
        _encodable(" ".join(paragraph)[:_QUERY_CHARACTERS]),
        _encodable(positive[:_POSITIVE_CHARACTERS]),
        node.lineno,
    )


def _is_stub(statement: ast.stmt) -> bool:
    match statement:
        case ast.Pass() | ast.Expr(ast.Constant()):
            return True
        case ast.Raise(exc=ast.Name(id=name) | ast.Call(func=ast.Name(id=name))):
            return name == "NotImplementedError"
        case _:
            return False


def _encodable(text: str) -> str:
    """Replace lone surrogates, which a docstring may spell but no file can hold."""
    return text.encode(errors="replace").decode()


class _Reader:
    """Collects pairs part by part, and remembers every text it has seen."""

    def __init__(self, root: Path, pool: ProcessPoolExecutor, progress: Progress, *, total: int):
        self.skipped = 0
        self._root, self._pool, self._progress, self._total = root, pool, progress, total
        self._done = 0
        self._queries: set[str] = set()
        self._positives: set[str] = set()

    def read(self, sources: Sequence[Source], cap: int, *, per_package: int) -> pa.Table:
        kept: list[tuple[str, str, str, str]] = []
        spare: list[tuple[str, str, str, str]] = []
        given: Counter[str] = Counter()
        paths = [str(self._root / source.path) for source in sources]
        # Leaving the loop drops the iterator, which cancels what is not yet being parsed.
        results = self._pool.map(read_functions, paths, chunksize=_FILES_PER_TASK)
        for source, functions in zip(sources, results, strict=True):
            self.skipped += functions is None
            for function in self._unseen(functions or ()):
                where = f"{source.path}:{function.line}"
                given[source.package] += 1
                target = kept if given[source.package] <= per_package else spare
                target.append((function.query, function.positive, source.package, where))
            self._progress(self._done + min(len(kept), cap), self._total)
            if len(kept) >= cap:
                break
        chosen = [*kept, *spare][:cap]
        self._done += len(chosen)
        columns: list[Sequence[str]] = [[row[i] for row in chosen] for i in range(len(SCHEMA))]
        return pa.table(columns, schema=SCHEMA)

    def _unseen(self, functions: Iterable[Function]) -> Iterable[Function]:
        for function in functions:
            if function.query in self._queries or function.positive in self._positives:
                continue
            self._queries.add(function.query)
            self._positives.add(function.positive)
            yield function


def _folder(root: Path | None) -> Path:
    return Path(sysconfig.get_path("purelib")) if root is None else root
