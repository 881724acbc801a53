"""MMEB: 36 tasks, in each of which a query has its own list of candidates; hit@1 is their metric.

A local copy of the evaluation set holds a folder a task with parquet files of columns ``qry_text``,
``qry_img_path``, ``tgt_text`` and ``tgt_img_path``. The last two are lists, whose first entries are
the positive; paths lie below one folder of images, and "" is no image.

Legend: Q queries, C candidates of a task, each once, L entries of all lists.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from b3_core.errors import InputError
from b3_core.evaluate.local import parquet_rows, text_of
from b3_core.evaluate.tiles import Parts
from b3_core.media import Item
from b3_core.reading import MMEB_MARK

_MOST_ENTRIES = 50_000_000
_MOST_CHARACTERS = 1 << 30
_COLUMNS = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")


@dataclass(frozen=True)
class MmebTask:
    """One of the 36."""

    name: str
    """As the folder is named."""
    meta: str
    """``classification``, ``vqa``, ``retrieval`` or ``grounding``."""
    trained: bool
    """It has a training set, so models are evaluated in domain."""


_BY_META = {
    "classification": (
        "ImageNet-1K N24News HatefulMemes VOC2007 SUN397",
        "Place365 ImageNet-A ImageNet-R ObjectNet Country211",
    ),
    "vqa": (
        "OK-VQA A-OKVQA DocVQA InfographicsVQA ChartQA Visual7W",
        "ScienceQA VizWiz GQA TextVQA",
    ),
    "retrieval": (
        "VisDial CIRR VisualNews_t2i VisualNews_i2t MSCOCO_t2i MSCOCO_i2t NIGHTS WebQA",
        "OVEN FashionIQ EDIS Wiki-SS-NQ",
    ),
    "grounding": ("MSCOCO", "RefCOCO RefCOCO-Matching Visual7W-Pointing"),
}
TASKS: tuple[MmebTask, ...] = tuple(
    MmebTask(name, meta, trained=at == 0)
    for meta, halves in _BY_META.items()
    for at, half in enumerate(halves)
    for name in half.split()
)
_PROMPTS = {"classification": "Represent the class label: ", "vqa": "Represent the answer: "}
_CAPTION = "Represent the image caption: "
_CAPTIONS = {"VisualNews_i2t", "MSCOCO_i2t"}


def positive_prompt(task: MmebTask) -> str:
    """Return what goes before the texts of a task's candidates, "" for nothing.

    Class labels, answers and captions have a prompt each; candidates that are images or passages
    have none (B3, arXiv 2505.11293, and its reference evaluation).
    """
    return _CAPTION if task.name in _CAPTIONS else _PROMPTS.get(task.meta, "")


@dataclass(frozen=True, eq=False)
class Lists:
    """A task's queries, each with its own list of candidates."""

    queries: tuple[Item, ...]
    candidates: tuple[Item, ...]
    """Of all lists, each once."""
    parts: Parts
    """Each query's own candidates, the positive first."""


def task_files(folder: Path, task: str) -> list[Path]:
    """Return a task's parquet files: those of the test split where splits are told apart."""
    paths = sorted((folder / task).glob("*.parquet"))
    return [path for path in paths if path.name.startswith("test")] or paths


def read_task(folder: Path, task: str) -> Lists:
    """Read a task's lists.

    Raises
    ------
    InputError
        There is no file, a column is missing, a list is empty or its two halves differ in length,
        or the whole is larger than an evaluation set can be.
    """
    paths = task_files(folder, task)
    if not paths:
        raise InputError(f"no parquet file in {folder / task}", expected="test-*.parquet")
    queries: list[Item] = []
    row_of: dict[Item, int] = {}
    entries: list[npt.NDArray[np.int64]] = []
    count = characters = 0
    for path in paths:
        for row in parquet_rows(path, _COLUMNS, batch=16):
            query, targets = _row(row, path, len(queries))
            rows = [row_of.setdefault(target, len(row_of)) for target in targets]
            queries.append(query)
            entries.append(np.array(rows, np.int64))
            count += len(rows)
            characters += sum(map(len, row["tgt_text"])) + len(query.text)
            if count > _MOST_ENTRIES or characters > _MOST_CHARACTERS:
                raise InputError(f"{path} holds more than an evaluation set can")
    if not queries:
        raise InputError(f"no rows in {folder / task}")
    end_Q = np.cumsum([len(rows) for rows in entries], dtype=np.int64)
    start_Q = np.concatenate([[0], end_Q[:-1]]).astype(np.int64)
    parts = Parts(start_Q, end_Q, np.concatenate(entries))
    return Lists(tuple(queries), tuple(row_of), parts)


def _row(row: Mapping[str, Any], path: Path, at: int) -> tuple[Item, list[Item]]:
    texts, files = row["tgt_text"], row["tgt_img_path"]
    if not isinstance(texts, list) or not isinstance(files, list) or len(texts) != len(files):
        raise InputError(f"row {at} of {path} has not as many target texts as paths")
    if not texts:
        raise InputError(f"row {at} of {path} has no candidates")
    query = _item(row["qry_text"], row["qry_img_path"])
    return query, [_item(text, file) for text, file in zip(texts, files, strict=True)]


def _item(text: Any, file: Any) -> Item:
    words, name = text_of(text or ""), text_of(file or "")
    return Item(words.replace(MMEB_MARK, "").strip(), "image" if name else "", name)


@dataclass(frozen=True)
class Mean:
    """A mean over some of the 36 tasks."""

    value: float
    ran: int
    """Tasks that it is over."""
    of: int
    """Tasks that it should be over."""

    @property
    def partial(self) -> bool:
        """A task is missing, so it compares with no published figure."""
        return self.ran < self.of


def means(hit: Mapping[str, float]) -> dict[str, Mean]:
    """Average hit@1 over all tasks, each meta-task, and those in and out of domain.

    Parameters
    ----------
    hit
        hit@1 by task, of those that ran.

    Returns
    -------
    dict
        ``all``, ``classification``, ``vqa``, ``retrieval``, ``grounding``, ``in-domain`` and
        ``out-of-domain``; without those of which no task ran.
    """
    parts: dict[str, list[str]] = {"all": [task.name for task in TASKS]}
    for meta in _BY_META:
        parts[meta] = [task.name for task in TASKS if task.meta == meta]
    parts["in-domain"] = [task.name for task in TASKS if task.trained]
    parts["out-of-domain"] = [task.name for task in TASKS if not task.trained]
    found = {}
    for part, names in parts.items():
        values = [hit[name] for name in names if name in hit]
        if values:
            found[part] = Mean(float(np.mean(values)), len(values), len(names))
    return found
