"""What a CONFIG for some data could say: columns by name and content, sizes by rows.

    Glance -> Found (roles of columns, what was noticed) -> Answers -> text of a CONFIG

Suggestions only: a person, or options of the command line, may say otherwise.

Legend: N rows.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from b3_core.advice import about_group, about_labels, about_lists
from b3_core.arrow_types import is_list, is_text, value_type
from b3_core.columns import (
    few,
    key_columns,
    label_of_numbers,
    list_columns,
    looked_at,
    media_columns,
    named_for,
    text_columns,
)
from b3_core.config import DEFAULT_P, MiningSpec
from b3_core.errors import InputError
from b3_core.glance import LEAST, Glance
from b3_core.source import LISTS

_MMEB_TEXTS, _MMEB_IMAGES = {"qry", "pos_text"}, {"qry_image_path", "pos_image_path"}

_LABEL_WORDS = 6.0  # a label is not longer, as a mean
_ANSWER_WORDS = 3.0  # of visual questions (arXiv 2505.11293: 1.6)
_LABEL_SHARE = 0.05  # distinct positives a row, at most, where they are labels
#: Training rows from which a batch size is suggested: an epoch keeps some 100 batches.
_BATCH_SIZES = ((1_000_000, 1024), (200_000, 256), (6_400, 64), (3_200, 32), (0, 16))
_MANY_ROWS = 200_000  # from which cells pay (docs/cells.md)
_CELL_ROWS = 32_768
_WINDOW_SHARE = 4  # a window with what is dropped before it is at most this part of the rows


@dataclass(frozen=True)
class Answers:
    """What is written into a CONFIG."""

    uri: str
    name: str
    columns: Mapping[str, str]
    """DatasetSpec's field -> column."""
    layout: str
    task: str
    teacher: str
    student: str
    reads: str
    batch_size: int
    k: int
    p: int
    m: int
    random_epochs: int
    store: str
    cell_rows: int | None = None


@dataclass(frozen=True)
class Found:
    """What the columns of a dataset seem to be."""

    rows: int
    columns: Mapping[str, str]
    """DatasetSpec's field -> column."""
    layout: str = "columns"
    task: str = "retrieval"
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """DatasetSpec's field -> columns that could be it."""
    notes: tuple[str, ...] = ()
    """What a person should know before a run."""


def find(seen: Glance, given: Mapping[str, str]) -> Found:
    """Say what the columns of a dataset seem to be.

    Parameters
    ----------
    given
        DatasetSpec's field -> column, for those that somebody has named; ``task`` likewise. ``-``
        says that there is no negative, or no group.

    Raises
    ------
    InputError
        A column given is not there, or one that is needed cannot be told.
    """
    names = seen.schema.names
    asked = given
    without = {role for role in ("negative", "group") if given.get(role) == "-"}
    given = {role: column for role, column in given.items() if role not in without}
    for role, column in given.items():
        if role != "task" and column in seen.uneven:
            raise InputError(
                f"column {column!r} {seen.uneven[column]}",
                expected="one that all files have alike",
                remedy=f"{_ALIKE}, or correct --{role.replace('_', '-')}",
            )
        if role != "task" and column not in names:
            raise InputError(
                f"column {column!r} is not in {seen.uri}",
                expected=f"one of: {', '.join(names[:20])}",
                remedy=f"correct --{role.replace('_', '-')}",
            )
    if set(names) >= _MMEB_TEXTS and _MMEB_IMAGES & set(names) and not set(given) - {"task"}:
        return Found(
            seen.rows,
            {},
            layout="mmeb",
            task=given.get("task", "retrieval"),
            notes=(_NEEDS_A_MODEL,),
        )
    texts, media = text_columns(seen), media_columns(seen)
    _check_given(seen, given, texts)
    columns = {role: column for role, column in given.items() if role != "task"}
    task = given.get("task")
    label = named_for("label", [name for name in texts if name not in columns.values()])
    if task is None and "positive" not in columns and label and _is_label(seen, label):
        task = "classification"
    if task == "classification" and "positive" not in columns:
        if label:
            columns["positive"] = label
        elif numbers := label_of_numbers(seen):
            raise InputError(
                f"column {numbers!r} of {seen.uri} holds {seen.schema.field(numbers).type}",
                expected="labels as texts",
                remedy=about_labels(seen, numbers),
            )
    columns |= _sides(columns, texts, media)
    _check_sides(columns, seen, given)
    for role in sorted({"negative", "group"} - without, reverse=True):
        taken = set(columns.values())
        able = texts if role == "negative" else key_columns(seen)
        named = columns.get(role) or named_for(role, [name for name in able if name not in taken])
        if named and not (role == "negative" and task == "classification"):
            columns[role] = named
    task = task or _task(seen, columns)
    ordered = {role: columns[role] for role in _ORDER if role in columns}
    return Found(
        seen.rows,
        ordered,
        task=task,
        choices={
            **{role: texts for role in ("query", "positive", "negative")},
            "group": key_columns(seen),
        },
        notes=(*_notes(seen, ordered, task), *_unread(seen, ordered, asked)),
    )


def _check_given(seen: Glance, given: Mapping[str, str], texts: Sequence[str]) -> None:
    keys = key_columns(seen)
    for role in ("query", "positive", "negative", "group"):
        able, what = (keys, "text or integers") if role == "group" else (texts, "texts")
        column = given.get(role)
        if column is None or column in able:
            continue
        kind = seen.schema.field(column).type
        remedy = f"correct --{role}"
        if is_list(kind) and role != "group":
            remedy = about_lists(seen, given) or LISTS
        elif role == "group" and column in seen.sample.column_names:
            remedy = about_group(seen, column)
        elif role == "positive" and label_of_numbers(seen, column):
            remedy = about_labels(seen, column)
        raise InputError(
            f"column {column!r} of {seen.uri} holds {kind}"
            f"{', or only blanks or paths' if is_text(value_type(kind)) else ''}",
            expected=f"{what}: {', '.join(able) or 'there is no such column'}",
            remedy=remedy,
        )


def _unread(seen: Glance, columns: Mapping[str, str], asked: Mapping[str, str]) -> Iterator[str]:
    """Say which columns might have been meant, but cannot be read as they are."""
    if asked.get("group") != "-" and "group" not in columns:
        others = set(seen.sample.column_names) - {*key_columns(seen), *columns.values()}
        if other := named_for("group", sorted(others)):
            kind = seen.schema.field(other).type
            yield f"column {other!r} holds {kind}, and is left out: {about_group(seen, other)}"
    if not any(role.endswith(("_image", "_video")) for role in columns) and (
        lists := about_lists(seen, asked)
    ):
        yield lists


_NEEDS_A_MODEL = (
    "no packaged model reads a text beside an image: set teacher.model and train.student to the "
    "folder of a vision-language model"
)

_ALIKE = "write the files alike, or leave some out: FILE may be a glob"

_ORDER = (
    *("query", "query_image", "query_video", "positive", "positive_image", "positive_video"),
    *("negative", "group"),
)


def answers(found: Found, seen: Glance, *, uri: str, **given: object) -> Answers:
    """Complete what was found with sizes and models.

    Parameters
    ----------
    uri
        As CONFIG shall have it.
    given
        Fields of :class:`Answers` that somebody has said; None where nobody did.
    """
    said = {key: value for key, value in given.items() if value is not None}
    rows = max(2, found.rows - max(1, round(0.05 * found.rows)))  # without what is held out
    batch = int(str(said.get("batch_size", _batch_size(rows, said))))
    k = int(str(said.get("k", _community_size(batch))))
    task = str(said.get("task", found.task))
    p, m = _window(rows, task, k)
    sees = found.layout == "mmeb" or any(
        role.endswith(("_image", "_video")) for role in _media(found)
    )
    query_seen = any(role.startswith("query_") for role in _media(found))
    suggested = Answers(
        uri=uri,
        name=_name_of(seen.uri),
        columns=found.columns,
        layout=found.layout,
        task=task,
        teacher="minilm" if sees else "static",
        student="glyphs" if sees else "tokens",
        reads="positive" if query_seen else "both",
        batch_size=batch,
        k=k,
        p=p,
        m=m,
        random_epochs=2 if sees else 0,
        store=".b3",
        # Labels are ranked by labels, of which there are few.
        cell_rows=_CELL_ROWS if rows >= _MANY_ROWS and task != "classification" else None,
    )
    return replace(suggested, **said)  # type: ignore[arg-type]


def _media(found: Found) -> list[str]:
    return [role for role in found.columns if role.endswith(("_image", "_video"))]


def _batch_size(rows: int, said: Mapping[str, object]) -> int:
    size = next(size for least, size in _BATCH_SIZES if rows >= least)
    k = said.get("k")
    if isinstance(k, int) and k > 0:
        return max(min(-(-size // k), rows // k), 1) * k
    while size > rows and size > 2:
        size //= 2
    return size


def _community_size(batch: int) -> int:
    """Return the k nearest to the default of those that batches can be made of."""
    return min(dividing(batch), key=lambda k: abs(k - MiningSpec().k))


def dividing(batch: int) -> list[int]:
    """Return every k that batches of a size can be made of."""
    small = {k for k in range(1, math.isqrt(batch) + 1) if batch % k == 0}
    return sorted({*small, *(batch // k for k in small)} - {1})


def _window(rows: int, task: str, k: int) -> tuple[int, int]:
    """Return p and m as the paper has them, less where there are few rows."""
    p = DEFAULT_P[task]
    # arXiv 2505.11293: 300 at K = 128, 2000 at K = 1024.
    m = 100 if k < 128 else 300 if k < 1024 else 2000
    most = max(2, rows // _WINDOW_SHARE)
    if p + m > most:
        scale = most / (p + m)
        p, m = int(p * scale), max(1, int(m * scale))
    return p, m


def _name_of(uri: str) -> str:
    """Name a dataset by its file or folder, in the letters that a name may have."""
    path = PurePosixPath(uri.partition("://")[2] or uri)
    stem = next(
        (part for part in (path.stem, *path.parent.parts[::-1]) if not set("*?[") & set(part)), ""
    )
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:64].rstrip("-._")
    return name if re.match(r"[A-Za-z0-9]", name) else "dataset"


def _sides(
    given: Mapping[str, str], texts: Sequence[str], media: Mapping[str, str]
) -> dict[str, str]:
    """Choose what stands for each side that nobody has named."""
    found: dict[str, str] = {}

    def free(columns: Sequence[str], *others: str) -> list[str]:
        taken = {*given.values(), *found.values(), *others}
        return [name for name in columns if name not in taken]

    has = {side: any(role.startswith(side) for role in given) for side in ("query", "positive")}
    kinds = [name for name in free(list(media))]
    negative = given.get("negative") or named_for("negative", free(texts)) or ""
    if not has["query"]:
        named = named_for("query", free(texts, negative))
        if kinds and (len(free(texts, negative)) < 2 or named is None):
            found[f"query_{media[kinds[0]]}"] = kinds[0]
        elif named is not None:
            found["query"] = named
        elif free(texts, negative):
            rest = free(texts, negative, named_for("positive", free(texts, negative)) or "")
            if rest:
                found["query"] = rest[0]
    if not has["positive"]:
        left = free(texts, negative)
        named = named_for("positive", left) or (left[0] if left else None)
        if named is not None:
            found["positive"] = named
        elif pictures := free(kinds):
            found[f"positive_{media[pictures[0]]}"] = pictures[0]
    # A picture beside a question is part of it.
    if not has["query"] and "query" in found and kinds and free(kinds):
        found[f"query_{media[kinds[0]]}"] = kinds[0]
    return found


def _check_sides(columns: Mapping[str, str], seen: Glance, given: Mapping[str, str]) -> None:
    for side in ("query", "positive"):
        if any(role in columns for role in (side, f"{side}_image", f"{side}_video")):
            continue
        names = ", ".join(seen.schema.names[:20]) or "there are none"
        raise InputError(
            f"none of the columns of {seen.uri} looks like a {side}: {names}"
            + (f"; its files differ: {_differing(seen)}" if seen.uneven else ""),
            expected="a column of texts, or of images",
            remedy=_remedy_of(side, seen, given),
        )


def _remedy_of(side: str, seen: Glance, given: Mapping[str, str]) -> str:
    if (lists := about_lists(seen, given)) is not None:
        return lists
    if side == "positive" and (numbers := label_of_numbers(seen)):
        return about_labels(seen, numbers)
    if names := list_columns(seen):
        return f"{', '.join(names[:5])} hold lists: {LISTS}"
    return _ALIKE if seen.uneven else f"name it with --{side}, or --{side}-image"


def _differing(seen: Glance) -> str:
    told = [f"column {name!r} {how}" for name, how in seen.uneven.items()]
    return "; ".join([*told[:3], *([f"{len(told) - 3} more"] if len(told) > 3 else [])])


def _is_label(seen: Glance, column: str) -> bool:
    texts = seen.texts(column)
    return few(texts) and _words(texts) <= _LABEL_WORDS


def _task(seen: Glance, columns: Mapping[str, str]) -> str:
    if "positive" not in columns:
        return "retrieval"
    texts = seen.texts(columns["positive"])
    pictured = any(role in columns for role in ("query_image", "query_video"))
    if pictured and "query" in columns and _words(texts) <= _ANSWER_WORDS:
        return "vqa"
    few = len(set(texts)) <= max(2, _LABEL_SHARE * len(texts))
    if len(texts) >= 100 and few and _words(texts) <= _LABEL_WORDS:
        return "classification"
    return "retrieval"


def _words(texts: Sequence[str | None]) -> float:
    return sum(len((text or "").split()) for text in texts) / max(1, len(texts))


def _notes(seen: Glance, columns: Mapping[str, str], task: str) -> tuple[str, ...]:
    lengths = [
        f"{sides} have {_words(seen.texts(columns[role])):.1f} words"
        for role, sides in (("query", "queries"), ("positive", "positives"))
        if role in columns
    ]
    notes = [f"{', '.join(lengths)}, as a mean"] if lengths else []
    if not seen.exact:
        notes.append(f"about {seen.rows:,} rows, by the sizes of files: not all were opened")
    if seen.uneven:
        notes.append(
            f"files differ: {_differing(seen)}; such columns are not suggested: a run refuses them"
        )
    for role in ("query", "positive", "negative", "group"):
        if role not in columns:
            continue
        looks = looked_at(seen, columns[role])
        blank = sum(not seeable for _, seeable in looks)
        if blank and not any(other.startswith(f"{role}_") for other in columns):
            notes.append(
                f"{blank} of {len(looks)} rows looked at have a blank {columns[role]!r}: "
                "a run refuses such rows; fill or remove them"
            )
    if "positive" in columns and task != "classification":
        texts = seen.texts(columns["positive"])
        repeated = 1 - len(set(texts)) / max(1, len(texts))
        if repeated > 0.01:
            notes.append(
                f"{repeated:.0%} of the rows looked at repeat a positive: they form groups, and "
                "are no negatives of one another"
            )
    if "positive" in columns and not any(role.startswith("positive_") for role in columns):
        distinct = len(set(seen.texts(columns["positive"])))
        if distinct < LEAST:
            notes.append(
                f"{distinct} different positives in the rows looked at: a run needs {LEAST}, "
                "and holds one out; add rows, or set eval_uri in CONFIG"
            )
    if any(role in columns and f"{role}_image" in columns for role in ("query", "positive")):
        notes.append(_NEEDS_A_MODEL)
    return tuple(notes)
