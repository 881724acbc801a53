"""A CONFIG file, read: paths made absolute, and mistakes told in one line."""

import difflib
import glob
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from b3_core.config.models import PACKAGED
from b3_core.config.pipeline import ArmSpec, PipelineSpec
from b3_core.errors import InputError
from b3_core.paths import fixed_folder, is_hidden

#: Files of a dataset as a store has them, by name.
_KEPT = ("pairs/00000000000000000000/train.parquet", "corpus/00000000000000000000/train.parquet")


def load_config(path: str | os.PathLike[str]) -> PipelineSpec:
    """Read CONFIG, a YAML file of :class:`PipelineSpec`.

    Relative paths in it are taken from the folder CONFIG lies in, and made absolute: the spec
    may be sent to a worker that runs elsewhere.

    Raises
    ------
    InputError
        The file is missing or no YAML mapping, a key is unknown, or a value is out of bounds.
    """
    file = Path(path)
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(
            f"cannot read CONFIG {file}: {reason}",
            expected="a YAML file",
            remedy="check the path",
        ) from error
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise InputError(
            f"CONFIG {file} is no valid YAML{line}: {getattr(error, 'problem', error)}",
            remedy="mend that line",
        ) from error
    if not isinstance(data, dict):
        raise InputError(f"CONFIG {file} holds no mapping", expected="keys such as 'datasets'")
    return parse_config(data, base=file.resolve().parent)


def parse_config(data: Mapping[str, Any], *, base: Path) -> PipelineSpec:
    """Validate a mapping as :class:`PipelineSpec`; relative paths are taken from ``base``."""
    try:
        spec = PipelineSpec.model_validate(dict(data))
    except ValidationError as error:
        # They are in pydantic's own words, whichever mistake comes first.
        secret = any(each["type"] == "credentials" for each in error.errors())
        raise _one_line(error) from (None if secret else error)
    datasets = [
        d.model_copy(
            update={
                "uri": absolute_uri(d.uri, base),
                "eval_uri": None if d.eval_uri is None else absolute_uri(d.eval_uri, base),
                "media": d.media.model_copy(
                    update={"root": d.media.root and absolute_uri(d.media.root, base)}
                ),
            }
        )
        for d in spec.datasets
    ]
    benchmarks = tuple(
        each.model_copy(
            update={
                "folder": absolute_uri(each.folder, base),
                "media": each.media and absolute_uri(each.media, base),
            }
        )
        for each in spec.evaluate.benchmarks
    )
    store = spec.store.model_copy(update={"root": absolute_uri(spec.store.root, base)})
    for dataset in datasets:
        for uri in filter(None, (dataset.uri, dataset.eval_uri)):
            _check_apart(dataset.name, uri, store.root)
    log_dir = absolute_uri(spec.compute.log_dir, base)
    return spec.model_copy(
        update={
            "datasets": tuple(datasets),
            "evaluate": spec.evaluate.model_copy(update={"benchmarks": benchmarks}),
            "compute": spec.compute.model_copy(update={"log_dir": log_dir}),
            "store": store,
            "teacher": spec.teacher.model_copy(update={"model": _model(spec.teacher.model, base)}),
            "train": spec.train.model_copy(update={"student": _model(spec.train.student, base)}),
        }
    )


def _check_apart(dataset: str, uri: str, root: str) -> None:
    """Refuse a store whose files would be taken for a dataset's."""
    folder, taken = uri.removeprefix("file://"), True
    root = root.removeprefix("file://")
    if glob.has_magic(folder):
        from fsspec.utils import glob_translate  # noqa: PLC0415 - few patterns, and slow to import

        matches = re.compile(glob_translate(folder)).match
        taken = any(matches(f"{root}/{dataset}/{file}") for file in _KEPT)
        folder = fixed_folder(folder)
    below = [part for part in posixpath.relpath(root, folder or "/").split("/") if part != "."]
    if taken and ".." not in below[:1] and not any(map(is_hidden, below)):
        raise InputError(
            f"store.root {root} lies in the folder of dataset {dataset!r}, whose files it would be "
            "taken for",
            expected="a place outside, or a folder that begins with '.', such as .b3",
            remedy="set store.root to another place",
        )


def absolute_uri(uri: str, base: Path) -> str:
    """Make a local path absolute from ``base``, without ``..``; leave what has a scheme alone."""
    return uri if "://" in uri else os.path.normpath((base / Path(uri).expanduser()).absolute())


def _model(model: str, base: Path) -> str:
    """Make a folder of weights absolute; a folder called like a packaged model is ``./static``."""
    if model in PACKAGED:
        return model
    folder = base / Path(model).expanduser()
    return str(folder.absolute()) if folder.is_dir() else model


def _one_line(error: ValidationError) -> InputError:
    """Turn pydantic's first complaint into one line, with the nearest known word for a typo."""
    first = _first(error)
    where = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]
    ).lstrip(".")
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"][:-1])
        return InputError(
            f"unknown key '{where}' in CONFIG",
            expected=f"one of: {', '.join(known)}",
            remedy=_nearest(str(first["loc"][-1]), known) or "remove it",
        )
    if first["type"] == "missing":
        return InputError(f"CONFIG lacks '{where}'", remedy="add it")
    if not where:
        message = first["msg"].removeprefix("Value error, ")
        return InputError(f"CONFIG is not consistent: {message}", remedy="change one of them")
    return _wrong_value(first, where)


def _wrong_value(first: Mapping[str, Any], where: str) -> InputError:
    shown = not isinstance(first["input"], (dict, list)) and first["type"] != "credentials"
    value = f" is {first['input']!r}" if shown else ""
    message, expected, remedy = f"'{where}' in CONFIG{value}", "", "correct the value"
    if first["type"] == "literal_error":
        known = re.findall("'([^']*)'", first["ctx"]["expected"])
        own = ", or keys of an arm of one's own" if first["loc"][:-1] == ("arms",) else ""
        expected = f"one of: {', '.join(known)}{own}"
        remedy = _nearest(str(first["input"]), known) or remedy
    elif first["type"] == "model_type":
        expected = f"keys: {', '.join(_known_keys(first['loc']))}"
    elif first["type"] == "tuple_type":
        key, expected = where.rpartition(".")[2], "a list"
        if not shown:
            message, remedy = f"{message} is a mapping", "put '- ' before its first key"
        elif first["input"] is not None:
            remedy = f"write {key}: [{first['input']}]"
    else:
        message += f": {first['msg'].removeprefix('Value error, ')}"
    return InputError(message, expected=expected, remedy=remedy)


def _first(error: ValidationError) -> Mapping[str, Any]:
    """Return the first complaint; of an arm, the one about what it was meant to be."""
    first, *others = error.errors()
    branch = first["loc"][2:3]
    if first["loc"][:1] != ("arms",) or not branch or branch[0] in ArmSpec.model_fields:
        return first
    # A name, or keys of one's own: pydantic complains of both, of the name first.
    meant = others[0] if isinstance(first["input"], dict) else first
    return {**meant, "loc": meant["loc"][:2] + meant["loc"][3:]}


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{near[0]}'?" if near else ""


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = PipelineSpec
    for part in location:
        if isinstance(part, int):
            continue
        # An arm's mining and batches are mappings: of the keys that CONFIG's own have.
        inner = _model_in(model.model_fields[part].annotation)
        model = inner or _model_in(PipelineSpec.model_fields[part].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model in a type, such as that of ``tuple[str | ArmSpec, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for each in get_args(annotation) if (found := _model_in(each))), None)
