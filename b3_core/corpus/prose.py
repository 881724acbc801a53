"""Prose: (first sentence, what follows it) of paragraphs that document web services.

``botocore``, which every installation has through s3fs, describes some 400 services in JSON, with
documentation in HTML for each operation, shape and member. A service is held out as a whole.
"""

import gzip
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from b3_core.corpus.parts import (
    POSITIVE_CHARACTERS,
    QUERY_CHARACTERS,
    Kind,
    Pair,
    Source,
    encodable,
    listed_files,
)

_TAG = re.compile(r"<[^>]*>")
#: A sentence of 20 characters or more, and at least 60 after it.
_SENTENCE = re.compile(rf"(.{{20,{QUERY_CHARACTERS}}}?[.!?])\s+(?=[A-Z])(.{{60,}})$")


def list_sources(root: Path) -> list[Source]:
    """List the newest description of every service."""
    newest: dict[str, Source] = {}
    files = listed_files(root, lambda distribution: distribution.name == "botocore")
    for path, checksum in sorted(files):  # versions are dates
        parts = PurePosixPath(path).parts
        if parts[:2] == ("botocore", "data") and parts[-1].startswith("service-2.json"):
            newest[parts[2]] = Source(path, checksum, parts[2])
    return sorted(newest.values(), key=lambda source: source.order)


def read_service(path: str) -> list[Pair] | None:
    """Return the pairs of a service's description, or None if it cannot be read."""
    try:
        content = Path(path).read_bytes()
        service = json.loads(gzip.decompress(content) if path.endswith(".gz") else content)
        documented = list(_documented(service))
    except (OSError, EOFError, ValueError, AttributeError, TypeError, RecursionError):
        return None
    found = (_pair(text, where) for text, where in documented)
    return [pair for pair in found if pair is not None]


def _documented(service: Any) -> Iterator[tuple[str, str]]:
    """Yield the documentation of operations, shapes and members, and what it is of."""
    for section in ("operations", "shapes"):
        for name, item in service.get(section, {}).items():
            yield item.get("documentation", ""), name
            for member, described in item.get("members", {}).items():
                yield described.get("documentation", ""), f"{name}.{member}"


def _pair(documentation: str, where: str) -> Pair | None:
    text = " ".join(html.unescape(_TAG.sub(" ", documentation)).split())
    match = _SENTENCE.match(text)
    if match is None:
        return None
    query, positive = map(encodable, match.groups())
    return Pair(query, positive[:POSITIVE_CHARACTERS], where)


KIND = Kind("service-docs", list_sources, read_service, "documented operation")
