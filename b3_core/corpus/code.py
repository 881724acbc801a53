"""Code search: (docstring, function body) pairs of the Python packages installed beside us.

The code is parsed, never imported or run.
"""

import ast
import re
import tokenize
import warnings
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from b3_core.corpus.parts import (
    POSITIVE_CHARACTERS,
    QUERY_CHARACTERS,
    Kind,
    Pair,
    Source,
    encodable,
    listed_files,
)

#: This project itself, and what it came to need after figures were taken on the corpus.
_LEFT_OUT = {
    "b3-batches",
    "peft",
    "av",
    "mteb",
    "polars",
    "polars-runtime-32",
    "pytrec_eval-terrier",
    "resvg_py",
    "material-design-icons-pack",
    "axe-playwright-python",
    "pytest-xdist",
    "execnet",
}
_FILE_BYTES = 1_000_000
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")  # where statements hold statements


def list_sources(root: Path) -> list[Source]:
    """List the installed Python files, each once, but for those of ``_LEFT_OUT``."""
    found: dict[str, Source] = {}
    for path, checksum in listed_files(
        root, lambda distribution: distribution.name not in _LEFT_OUT
    ):
        if path.endswith(".py"):
            top = PurePosixPath(path).parts[0].removesuffix(".py")
            found.setdefault(path, Source(path, checksum, top))
    return sorted(found.values(), key=lambda source: source.order)


def read_functions(path: str) -> list[Pair] | None:
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


def _function(node: ast.AST, lines: Sequence[str]) -> Pair | None:
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
    return Pair(
        encodable(" ".join(paragraph)[:QUERY_CHARACTERS]),
        encodable(positive[:POSITIVE_CHARACTERS]),
        str(node.lineno),
    )


def _is_stub(statement: ast.stmt) -> bool:
    match statement:
        case ast.Pass() | ast.Expr(ast.Constant()):
            return True
        case ast.Raise(exc=ast.Name(id=name) | ast.Call(func=ast.Name(id=name))):
            return name == "NotImplementedError"
        case _:
            return False


KIND = Kind("python-code", list_sources, read_functions, "documented function")
