"""Columns of texts and media out of files, local or in a bucket, with errors a person can act on.

    uri -> sorted files (parquet; Arrow, as Hugging Face saves datasets; tar, as webdataset has
    them) -> bounded record batches -> checked columns

In a bucket files are read by ranges, with the patience of :mod:`b3_core.remote`, and each must be
at the end what it was when it was listed.
"""

import contextlib
import fnmatch
import glob
import hashlib
import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from fsspec.utils import glob_translate

from b3_core.arrow_types import is_list, is_text, value_type
from b3_core.artifacts import canonical_json
from b3_core.errors import InputError, RefusedError, UnreachableError, carries_credentials, reason
from b3_core.formats import open_rows_of
from b3_core.media_columns import MediaColumns, MediaOf
from b3_core.paths import fixed_folder, is_hidden
from b3_core.remote import Remote, ShortTransferError, open_fs

#: What files of rows end with, in the order that a folder is searched for them.
FORMATS = (".parquet", ".arrow", ".tar")
#: What to do about a column of lists.
LISTS = (
    "write one row for each value of a list, with the query as group (README, 'Your own "
    "data', shows how)"
)
_COLUMNS_NAMED = 20  # of a wide file, in an error message
# Of texts without such a character tokenizers leave nothing: spaces, controls, marks that stand on
# nothing, and what takes the place of bytes that were no text.
_VISIBLE = r"[^\s\p{Z}\p{C}\p{M}\x{FFFD}]"


def source_digest(uri: str) -> str:
    """Say what a dataset's files are now, so that a change is noticed.

    Returns
    -------
    str
        Hex sha256 over the sorted files' names below their common folder, with their sha256, or
        with size and ETag where the file system tells an ETag (S3: nothing is downloaded).

    Raises
    ------
    InputError
        There is no such file, or it cannot be read.
    """
    fs, files = list_files(uri)
    base = posixpath.commonpath([posixpath.dirname(file) for file in files])
    digest = hashlib.sha256()
    for file, info in files.items():
        if info.get("ETag"):
            content = f"{info['size']} {info['ETag']}"
        else:
            with opened(fs, file, info) as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
        line = f"{posixpath.relpath(file, base)}\0{content}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def source_listing(uri: str) -> str:
    """Say what a dataset's files look like, without reading any.

    Returns
    -------
    str
        Hex sha256 over names, sizes and ETags or times of change. Files whose listing is the same
        are taken for unchanged; where it differs the content may still be the same.

    Raises
    ------
    InputError
        There is no such file.
    """
    _, files = list_files(uri)
    looks = [
        (file, info["size"], str(info.get("ETag") or info.get("mtime")), info.get("ino"))
        for file, info in files.items()
    ]
    return hashlib.sha256(canonical_json(looks)).hexdigest()


def media_listing(uri: str, columns: Sequence[str], root: str) -> str:
    """Say what the files that columns of paths name look like, without reading any.

    Returns
    -------
    str
        Hex sha256 over the paths, with sizes and ETags or times of change; blank where the columns
        hold bytes or members of tars, which :func:`source_digest` covers.

    Raises
    ------
    InputError
        The files of rows cannot be read.
    """
    fs, files = list_files(uri)
    named: set[str] = set()
    for file, info in files.items():
        with (
            opened(fs, file, info) as stream,
            open_rows_of(stream, file, remote=isinstance(fs, Remote)) as rows,
        ):
            paths = [] if file.endswith(".tar") else _path_columns(rows.schema, columns)
            for batch in rows.batches(paths) if paths else ():
                for path in paths:
                    named.update(filter(None, batch.column(path).unique().to_pylist()))
    if not named:
        return ""
    digest = hashlib.sha256()
    for path, look in _looks(root, sorted(named)):
        digest.update(canonical_json([path, look]))
    return digest.hexdigest()


def _path_columns(schema: pa.Schema, columns: Sequence[str]) -> list[str]:
    found = [name for name in dict.fromkeys(columns) if schema.names.count(name) == 1]
    return [name for name in found if is_text(value_type(schema.field(name).type))]


def _looks(root: str, paths: Sequence[str]) -> Iterator[tuple[str, object]]:
    """Yield what a listing says of files below ``root``; None of one that is not there."""
    fs, folder = open_fs(root)
    # Whoever reads them says what is wrong with the others.
    inside = [path for path in paths if not path.startswith("/") and ".." not in path.split("/")]
    found: dict[str, object] = {}
    if isinstance(fs, Remote):
        common = posixpath.commonpath([posixpath.dirname(path) for path in inside] or [""])
        with contextlib.suppress(FileNotFoundError):
            listed = fs.find(posixpath.join(folder, common), detail=True)
            found = {name: (info["size"], info.get("ETag")) for name, info in listed.items()}
    else:
        for path in inside:
            with contextlib.suppress(OSError, ValueError):
                info = os.stat(os.path.join(folder, path))
                found[posixpath.join(folder, path)] = (info.st_size, info.st_mtime_ns)
    for path in paths:
        yield path, found.get(posixpath.join(folder, path))


def read_rows(
    uri: str,
    columns: Mapping[str, str],
    media: MediaColumns | None = None,
    *,
    may_lack: Sequence[str] = (),
) -> pa.Table:
    """Read columns, files in sorted order, every value present and not blank.

    Parameters
    ----------
    uri
        File, folder or glob; local path or any fsspec URI. A tar holds a sample of several members
        that share a name up to the first dot; their columns are called by what follows it, as in
        webdataset, and a member of a JSON object ``json.field``.
    columns
        What a column of text is called in the result -> in the files. A column called ``group``
        may hold integers, which become text.
    media
        Columns of media. A value is a path; bytes; Hugging Face's ``{bytes, path}``; or a member of
        a tar. A side with such a column needs text or medium in every row, not both.
    may_lack
        Sides that may have neither; their texts are blank then.

    Returns
    -------
    pa.Table
        A string column for each entry of ``columns``; and, with ``media``, ``query_medium`` and
        ``positive_medium``, of ``b3_core.inputs.MEDIUM`` without digests; ``negative_medium`` if
        such a column is among them; one row or more.

    Raises
    ------
    InputError
        No file, none of these formats, no such column, no text, a null or blank value, or no row.
    """
    fs, files = list_files(uri)
    # A side without a column of text has blank texts.
    roles = list(dict.fromkeys([*columns, *([] if media is None else media.sides)]))
    blanks = {role: Blanks(columns.get(role, role)) for role in roles}
    batches = []
    for file, info in files.items():
        start = 0
        with (
            opened(fs, file, info) as stream,
            open_rows_of(stream, file, remote=isinstance(fs, Remote)) as rows,
        ):
            check_columns(rows.schema, columns, file)
            picked = None if media is None else MediaOf(media, fs, file, rows.schema)
            wanted = [*columns.values(), *(picked.columns if picked else ())]
            for batch in rows.batches(wanted):
                texts = {role: _as_text(batch.column(name)) for role, name in columns.items()}
                media_of = {} if picked is None else picked.of_batch(batch)
                for role in roles:
                    text = texts.get(role, pa.repeat("", len(batch)))
                    medium = media_of.get(role)
                    if role not in may_lack:
                        blanks[role].look(text, file, start, but=medium)
                    texts[role] = text.fill_null("")  # a null that may not be is refused below
                names = [*roles, *(f"{side}_medium" for side in media_of)]
                arrays = [*(texts[role] for role in roles), *media_of.values()]
                batches.append(pa.RecordBatch.from_arrays(arrays, names=names))
                start += len(batch)
    for blank in blanks.values():
        blank.refuse()
    table = pa.Table.from_batches(batches) if batches else pa.table({})
    if not len(table):
        raise InputError(
            f"{uri} holds no rows",
            expected="at least two rows",
            remedy="check how the file was written",
        )
    return table


@dataclass
class Blanks:
    """How many values of a column are null or blank, and where the first one is."""

    column: str
    count: int = 0
    first: str = ""

    def look(self, text: pa.Array, file: str, start: int, *, but: pa.Array | None = None) -> None:
        """Look through one batch, whose first row is row ``start`` of ``file``.

        Where ``but`` has a medium, a text may be blank.
        """
        blank = pc.invert(visible(text))
        if but is not None:
            blank = pc.and_(blank, pc.equal(but.field("kind"), ""))
        found = blank.true_count
        if found and not self.count:
            self.first = f"row {start + blank.index(True).as_py()} of {file} (counting from 0)"
        self.count += found

    def refuse(self) -> None:
        """Raise if there was any."""
        if self.count:
            rows = "1 row" if self.count == 1 else f"{self.count} rows"
            raise InputError(
                f"column {self.column!r} is null or blank in {rows}, first in {self.first}",
                expected="a value in every row",
                remedy="fill or remove such rows",
            )


def visible(text: pa.Array) -> pa.Array:
    """Say which texts have a character that one could see; null has none."""
    return pc.match_substring_regex(text.fill_null(""), _VISIBLE)


def list_files(uri: str) -> tuple[Any, dict[str, dict[str, Any]]]:
    """Return the file system, and path -> fsspec's info of every file, sorted by path."""
    if carries_credentials(uri):
        raise InputError(
            "uri of a dataset carries credentials, and would be in every log",
            expected="s3://bucket/path, or a local path",
            remedy="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead, or download the file",
        )
    if uri.startswith("hf://"):
        from huggingface_hub import is_offline_mode  # noqa: PLC0415 - for its own files alone

        if is_offline_mode():  # its file system would fail as if the network did, again and again
            raise InputError(
                f"{uri} is on the Hugging Face hub, which is not asked while HF_HUB_OFFLINE=1",
                remedy="set HF_HUB_OFFLINE=0 in the environment, or download the files",
            )
    try:
        fs, path = open_fs(uri)
        fs.invalidate_cache()  # listings are cached, and files change
        found = _matching(fs, path)
    except UnreachableError:
        raise
    except Exception as error:  # botocore, aiohttp, fsspec and the OS each have their own
        raise InputError(
            f"{uri} cannot be opened: {reason(error)}",
            expected="a parquet, Arrow or tar file, folder or glob: a local path or s3://",
            remedy="check the path, its permissions and, for s3://, the AWS_* environment",
        ) from error
    if not found:
        raise InputError(
            f"no file matches {uri}",
            expected="a parquet, Arrow or tar file, a folder of such files, or a glob",
            remedy="check the path",
        )
    return fs, dict(sorted(found.items()))


def _matching(fs: Any, path: str) -> dict[str, dict[str, Any]]:
    try:
        info = fs.info(path)
    except FileNotFoundError:
        found = _glob(fs, path) if glob.has_magic(path) else {}
        root = fixed_folder(path)
        meant = [part for part in path.split("/") if part.startswith(("_", "."))]
        return {
            file: info
            for file, info in found.items()
            if info["type"] != "directory" and not _hidden_folders(file, root, meant)
        }
    if info["type"] != "directory":
        return {path: info}
    # Writers leave files such as _metadata, .part-0.parquet and cache-0.arrow beside the data, and
    # folders such as _temporary and _delta_log; a store may be there too, .b3 by default.
    rows = {
        file: info
        for file, info in fs.find(path, detail=True).items()
        if not posixpath.basename(file).startswith(("_", ".", "cache-"))
        and not _hidden_folders(file, path)
    }
    for suffix in FORMATS:  # the first that there is any of: pictures may lie beside
        if chosen := {file: info for file, info in rows.items() if file.endswith(suffix)}:
            return chosen
    return {}


def _hidden_folders(file: str, root: str, meant: Sequence[str] = ()) -> list[str]:
    """Return the hidden folders between ``root`` and a file.

    But those that are ``meant``, by parts of a pattern that begin with ``_`` or ``.`` too.
    """
    folders = posixpath.relpath(file, root or "/" * file.startswith("/")).split("/")[:-1]
    return [
        folder
        for folder in folders
        if is_hidden(folder) and not any(fnmatch.fnmatchcase(folder, part) for part in meant)
    ]


def _glob(fs: Any, pattern: str) -> dict[str, dict[str, Any]]:
    """Return what matches a pattern: path -> fsspec's info.

    fsspec's own glob takes a folder that it fails to list for an empty one: rows would be missing,
    and nobody would know.
    """
    if not isinstance(fs, Remote):
        found: dict[str, dict[str, Any]] = fs.glob(pattern, detail=True)
        return found
    root = fixed_folder(pattern)
    matches = re.compile(glob_translate(pattern)).match
    if "**" in pattern:
        below = fs.find(root, detail=True)
        return {path: info for path, info in below.items() if matches(path)}
    level = [{"name": root, "type": "directory"}]
    for _ in range(pattern.count("/") - root.count("/")):
        folders = [info["name"].rstrip("/") for info in level if info["type"] == "directory"]
        level = [info for folder in folders for info in _listed(fs, folder)]
    return {info["name"]: info for info in level if matches(info["name"])}


def _listed(fs: Remote, folder: str) -> list[dict[str, Any]]:
    """Return what is in a folder, without the object that stands for it in some buckets."""
    try:
        inside = fs.ls(folder, detail=True)
    except FileNotFoundError:
        return []
    return [info for info in inside if info["name"].rstrip("/") != folder]


def check_columns(schema: pa.Schema, columns: Mapping[str, str], file: str) -> None:
    """Check that a file has columns, and that they hold text.

    Parameters
    ----------
    columns
        Field of ``DatasetSpec`` -> column of the file.

    Raises
    ------
    InputError
        A column is not there, or twice, or holds something else.
    """
    for role, name in columns.items():
        if schema.names.count(name) != 1:
            twice = name in schema.names
            near = get_close_matches(name, schema.names, n=1)
            more = ", ..." if len(schema.names) > _COLUMNS_NAMED else ""
            raise InputError(
                f"column {name!r} is {'twice' if twice else 'not'} in {file}",
                expected=f"one of: {', '.join(schema.names[:_COLUMNS_NAMED])}{more}",
                remedy=f"did you mean {near[0]!r}?"
                if near and not twice
                else f"set '{role}' of the dataset to another column",
            )
        kind = schema.field(name).type
        value = value_type(kind)
        if not (is_text(value) or (role == "group" and pa.types.is_integer(value))):
            raise InputError(
                f"column {name!r} of {file} holds {kind}",
                expected="text or integers" if role == "group" else "text",
                remedy=LISTS
                if is_list(value)
                else f"convert it, or set '{role}' of the dataset to another column",
            )


def _as_text(column: pa.Array) -> pa.Array:
    text = column.cast(pa.string())
    text.validate(full=True)  # nobody has looked at the bytes yet: they may be no UTF-8
    return text


@contextlib.contextmanager
def opened(fs: Any, file: str, info: Mapping[str, Any]) -> Iterator[Any]:
    """Open a file to read; what goes wrong with it until it is closed is one line."""
    remote = isinstance(fs, Remote) and info.get("size") is not None
    try:
        with fs.open_blocks(file, info["size"]) if remote else fs.open(file, "rb") as stream:
            yield stream
        if remote:
            _check_unchanged(fs, file, info)
    except (pa.ArrowException, OSError) as error:
        # Parts of two files can look like anything; a server that is silent need not be asked.
        silent = isinstance(error, UnreachableError)
        if remote and (not silent or isinstance(error.__cause__, ShortTransferError)):
            _check_unchanged(fs, file, info)
        if silent:
            raise
        if isinstance(error, RefusedError):
            raise InputError(
                error.problem, expected="a file that may be read", remedy=error.remedy
            ) from error
        raise InputError(
            f"{file} cannot be read: {reason(error)}",
            expected=f"a {_kind_of(file)} file",
            remedy="write it again, or leave it out of uri",
        ) from error


def _kind_of(file: str) -> str:
    return {".arrow": "Arrow", ".tar": "tar"}.get(posixpath.splitext(file)[1], "parquet")


def _check_unchanged(fs: Remote, file: str, before: Mapping[str, Any]) -> None:
    """Refuse what was put together from parts of several versions of a file."""
    try:
        now = fs.info(file)
    except FileNotFoundError:
        now = {}
    if _version(now) != _version(before):
        raise InputError(
            f"{file} {'was changed' if now else 'was removed'} while it was read",
            expected="a file that stays as it is",
            remedy="run the same command again when it has been written",
        )


def _version(info: Mapping[str, Any]) -> tuple[object, str]:
    return info.get("size"), str(info.get("ETag", "")).strip('"')
