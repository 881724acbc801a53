"""What to do about columns that no run reads: lines of pandas for the file at hand."""

import glob
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from b3_core.columns import key_columns, list_columns, named_for, text_columns
from b3_core.glance import Glance

_LABELS = 6  # spelt out


def about_group(seen: Glance, column: str) -> str:
    """Say what a group is, and how a column becomes one."""
    values = seen.sample[column]
    said = ["a group is text or integers, with a value in every row"]
    if pa.types.is_floating(values.type):
        missing = pc.is_null(values, nan_is_null=True)
        there = values.filter(pc.invert(missing))
        if pc.all(pc.equal(there, pc.floor(there))).as_py():
            said.append(f"in pandas rows[{column!r}].astype('Int64') makes integers of it")
        if count := pc.sum(missing).as_py():
            said.append(f"{count} of {len(values)} rows looked at have none: fill or remove them")
    return "; ".join(said)


def about_labels(seen: Glance, column: str) -> str:
    """Say how a column of numbers becomes one of labels."""
    values = sorted(seen.sample[column].drop_null().unique().to_pylist())
    texts = [f"{value!r}: 'name of {value}'" for value in values[:_LABELS]]
    more = ", ..." if len(values) > _LABELS else ""
    renamed = f"rows[{column!r}] = rows[{column!r}].map({{{', '.join(texts)}{more}}})"
    how = _program(seen, renamed, into="labelled.parquet") or renamed
    return f"labels are texts that say what they are, so write names in the place of numbers: {how}"


def about_lists(seen: Glance, given: Mapping[str, str]) -> str | None:
    """Say how columns of lists become rows, if it can be told which column is what.

    Parameters
    ----------
    given
        DatasetSpec's field -> column, for those that somebody has named; ``-`` for none.

    Returns
    -------
    str or None
        None as well where the columns that would be chosen are none of lists.
    """
    lists, texts = list_columns(seen), text_columns(seen)

    def free(columns: list[str], *taken: str | None) -> list[str]:
        return [name for name in columns if name not in {*taken, *given.values()}]

    negative = given.get("negative") or named_for("negative", free([*texts, *lists]))
    query = given.get("query") or named_for("query", free(texts, negative))
    query = query or named_for("query", free(lists, negative))
    rest = free([*texts, *lists], negative, query)
    positive = given.get("positive") or named_for("positive", rest)
    left = [name for name in rest if name != positive]
    if positive is None and len(left) == 1:
        positive = left[0]
    elif query is None and len(left) == 1:
        query = left[0]
    if query is None or positive is None or (query in lists and positive in lists):
        return None
    keep = [query, positive, *([negative] if negative not in (None, "-") else [])]
    exploded = [name for name in keep[:2] if name in lists]
    first = [name for name in keep[2:] if name in lists]
    steps = [f"rows[{name!r}] = rows[{name!r}].str[0]" for name in first]
    if positive in lists:
        group = named_for("group", free(key_columns(seen), *keep))
        if given.get("group", "-") != "-":
            group = given["group"]
        elif group is None:
            group = "group"
            steps.append(f"rows['group'] = rows[{query!r}]")
        keep.append(group)
    explode = "".join(f".explode({name!r})" for name in exploded)
    program = _program(seen, *steps, f"rows = rows[{keep!r}]{explode}.dropna()")
    if not (exploded or first) or program is None:
        return None
    said = [
        *(
            f"column {name!r} holds lists: write one row for each value of a list"
            for name in exploded
        ),
        *(f"column {name!r} holds lists: of negatives take one a row" for name in first),
    ]
    return f"{'; '.join(said)}: {program}"


def _program(seen: Glance, *steps: str, into: str = "pairs.parquet") -> str | None:
    """Return one line that reads the file and writes another, if pandas reads it as it is."""
    if glob.has_magic(seen.uri) or seen.files[0].endswith((".arrow", ".tar")):
        return None
    read = f"rows = pandas.read_parquet({seen.uri!r})"
    write = f"rows.to_parquet({into!r}, index=False)"
    return "; ".join(["import pandas", read, *steps, write])
