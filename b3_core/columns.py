"""What the columns of a dataset could be: by what they are called, and by what they hold."""

import re
from collections.abc import Mapping, Sequence

import pyarrow as pa

from b3_core.arrow_types import is_list, is_text, value_type
from b3_core.glance import IMAGE_NAMES, VIDEO_NAMES, Glance, is_plain
from b3_core.source import visible

#: What columns are called, most telling first.
NAMES: Mapping[str, Sequence[str]] = {
    "query": (
        *("query", "question", "anchor", "qry", "queries", "questions", "sentence1", "sentence_1"),
        *("premise", "text1", "prompt", "instruction", "title", "input", "docstring", "headline"),
        *("summary", "sentence", "utterance", "text", "txt"),
    ),
    "positive": (
        *("positive", "pos", "answer", "pos_text", "document", "passage", "response", "answers"),
        *("sentence2", "sentence_2", "hypothesis", "text2", "context", "body", "code", "output"),
        *("completion", "target", "caption", "description", "reply", "doc", "content", "article"),
        *("abstract", "name", "text", "txt"),
    ),
    "negative": ("negative", "neg", "hard_negative", "neg_text"),
    "label": ("label", "class", "category", "intent", "topic", "label_text", "cls", "tag"),
    "group": ("group", "group_id", "cluster", "cluster_id", "doc_id", "document_id", "passage_id"),
}
_IMAGE_PATH = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?)$", re.IGNORECASE)
_VIDEO_PATH = re.compile(r"\.(mp4|webm|mov|mkv|avi)$", re.IGNORECASE)


def text_columns(seen: Glance) -> list[str]:
    """Return the columns that may be a text: of strings, not of paths, and not all blank."""
    found = []
    for name in seen.sample.column_names:
        if not is_text(value_type(seen.sample.schema.field(name).type)):
            continue
        texts = [text for text, seeable in looked_at(seen, name) if text and seeable]
        if texts and not paths(texts):
            found.append(name)
    return found


def looked_at(seen: Glance, column: str) -> list[tuple[str | None, bool]]:
    """Return a column's texts, and of each whether a run takes it."""
    texts = seen.texts(column)
    return list(zip(texts, visible(pa.array(texts, pa.string())).to_pylist(), strict=True))


def paths(texts: Sequence[str]) -> str | None:
    """Say of which kind of media these are paths, if they are."""
    for kind, pattern in (("image", _IMAGE_PATH), ("video", _VIDEO_PATH)):
        if all(pattern.search(text) for text in texts):
            return kind
    return None


def media_columns(seen: Glance) -> dict[str, str]:
    """Return column -> image or video, of paths, bytes, Hugging Face's structs, tars' members."""
    found: dict[str, str] = {}
    for each in seen.schema:
        name, kind = each.name, each.type
        if is_plain(each, seen.files[0]):
            if name in seen.sample.column_names and is_text(value_type(kind)):
                medium = paths([text for text in seen.texts(name) if text] or [""])
                found |= {name: medium} if medium else {}
        elif name in VIDEO_NAMES:
            found[name] = "video"
        elif name in IMAGE_NAMES:
            found[name] = "image"
        elif (pa.types.is_struct(kind) and {"bytes"} <= {part.name for part in kind}) or (
            "binary" in str(kind) and not pa.types.is_nested(kind)
        ):
            found[name] = "video" if "video" in name.lower() else "image"
    return {name: kind for name, kind in found.items() if seen.schema.names.count(name) == 1}


def key_columns(seen: Glance) -> list[str]:
    """Return the columns that may say which rows are positives of one another."""
    values = {each.name: value_type(each.type) for each in seen.sample.schema}
    return [name for name, value in values.items() if is_text(value) or pa.types.is_integer(value)]


def list_columns(seen: Glance) -> list[str]:
    """Return the columns that hold several texts a row."""
    kinds = {each.name: each.type for each in seen.schema}
    return [
        name
        for name, kind in kinds.items()
        if is_list(kind) and is_text(value_type(kind.value_type))
    ]


def label_of_numbers(seen: Glance, column: str | None = None) -> str | None:
    """Return the column, or say whether one is it, that would be labels if it were of texts."""
    tests = (pa.types.is_integer, pa.types.is_floating)
    able = [each.name for each in seen.sample.schema if any(test(each.type) for test in tests)]
    found = named_for("label", able) if column is None else column
    return found if found is not None and found in able and few(seen.texts(found)) else None


def few(texts: Sequence[str | None]) -> bool:
    """Tell whether texts repeat as labels do."""
    return 2 <= len(set(texts)) <= max(2, len(texts) // 4)


def named_for(role: str, columns: Sequence[str]) -> str | None:
    """Return the column whose name says most that it is for a role."""
    plain = {re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_"): name for name in columns[::-1]}
    for known in NAMES[role]:
        if known in plain:
            return plain[known]
    for known in NAMES[role][:8]:  # then as a part of one, such as question_text
        for name, column in plain.items():
            if known in name.split("_"):
                return column
    return None
