"""The figures of a report as Markdown, for a run's page.

describe's dict -> tables, sentences
"""

import re
from collections.abc import Sequence

from b3_core.report import view
from b3_core.report.view import Described, Line


def summary(described: Described) -> str:
    """Write what is wrong, and every dataset's figures beside random batches and the paper's."""
    parts = [
        f"- **{each['dataset']}**: {_plain(each['says'])}. {_plain(each['remedy'])}."
        for each in described["advice"]
    ]
    parts += [f"- {_plain(sentence)}" for sentence in described["gone"]]
    names = [data["name"] for data in described["datasets"]]
    parts += ["", _table("", names, view.dataset_lines(described["datasets"]))]
    for data in described["datasets"]:
        parts += ["", _table(data["name"], list(view.ARMS.values()), view.arms_lines(data))]
    parts += ["", _plain(described["sampling"]["method"])]
    return "\n".join(parts).strip()


def _table(head: str, columns: Sequence[str], lines: Sequence[Line]) -> str:
    rows = [
        [head, *columns],
        ["-"] * (1 + len(columns)),
        *([line.label, *line.cells] for line in lines),
    ]
    return "\n".join(f"| {' | '.join(_plain(cell) for cell in row)} |" for row in rows)


def _plain(text: str) -> str:
    """Take from a text what Markdown would read as more than text."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))
