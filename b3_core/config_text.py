"""A CONFIG as text that explains itself: what was chosen, and in comments what else there is."""

import re
from collections.abc import Mapping

import yaml

from b3_core.config import DEFAULT_P
from b3_core.suggest import Answers

_PLAIN = re.compile(r"(\.{0,2}/|\.?[A-Za-z_])[A-Za-z0-9_./-]*")


def scalar(value: str | int | float) -> str:
    """Write a value as YAML in one line, so that it is read back as it is, whatever it holds."""
    text = str(value)
    if not isinstance(value, str):
        return text
    if _PLAIN.fullmatch(text) and yaml.safe_load(text) == text:
        return text
    quoted = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10**9)
    return quoted.strip()


def config_text(answers: Answers) -> str:
    """Write a CONFIG from answers: YAML, as ``load_config`` reads it."""
    a = answers
    sections = [
        ["# A CONFIG of b3. Any other key has a default: see README, 'Your own data'."],
        [f"name: {scalar(a.name)}"],
        [
            "datasets:",
            f"  - name: {scalar(a.name)}",
            f"    uri: {scalar(a.uri)}",
            *_columns(a.columns, a.layout),
            f"    task: {a.task}  # retrieval, grounding, vqa or classification",
            "    # eval_uri: ...  # held-out rows, same columns; else 5 % of the groups are taken",
        ],
        _teacher(a),
        [
            "mining:",
            *_window(a),
            f"  k: {a.k}  # rows in a community; batch_size is a multiple of it",
            *_cells(a),
        ],
        [
            "batches:",
            f"  batch_size: {a.batch_size}",
            *_curriculum(a.random_epochs),
        ],
        [
            "train:",
            f"  student: {scalar(a.student)}  # {_STUDENTS}",
        ],
        [
            "# Trained side by side on equal examples; also paper, b3++, or arms of your own.",
            "arms: [random, b3]",
            "seeds: [0]  # at least three, to tell a difference from chance",
        ],
        ["store:", f"  root: {scalar(a.store)}  # a folder, or s3://bucket/prefix"],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


_TEACHERS = "static, minilm (better, slower), or a sentence-transformers folder"
_STUDENTS = "tokens, static, minilm, or a sentence-transformers folder"


def _columns(columns: Mapping[str, str], layout: str) -> list[str]:
    if layout != "columns":
        return [f"    layout: {layout}"]
    return [f"    {role}: {scalar(column)}" for role, column in columns.items()]


def _teacher(a: Answers) -> list[str]:
    lines = ["teacher:", f"  model: {scalar(a.teacher)}  # {_TEACHERS}"]
    if a.reads != "both":
        lines.append(
            f"  reads: {a.reads}  # it cannot read queries: positives stand for their rows"
        )
    return lines


def _window(a: Answers) -> list[str]:
    if a.task == "classification":
        return [f"  m: {a.m}  # rows of near labels drawn for a row"]
    usual = f"; {DEFAULT_P[a.task]} is usual" if a.p != DEFAULT_P[a.task] else ""
    return [
        f"  p: {a.p}  # first ranks dropped as probable false negatives{usual}",
        f"  m: {a.m}  # ranks kept after them: a row's window",
    ]


def _cells(a: Answers) -> list[str]:
    if a.cell_rows is None:
        return []
    return [
        f"  cell_rows: {a.cell_rows}  # in one piece the time grows with the square of the rows"
    ]


def _curriculum(random_epochs: int) -> list[str]:
    lines = ["  curriculum:"]
    if random_epochs:
        lines.append(
            f"    - {{epochs: {random_epochs}, random_share: 1}}  # the student is untrained"
        )
    lines.append(f"    - {{epochs: {2 if random_epochs else 3}}}")
    if not random_epochs:
        lines += [
            "    # Better, at one more pass over all rows: mine again with the student so far,",
            "    # - {epochs: 1}",
            "    # - {epochs: 2, refresh: true}",
        ]
    return lines
