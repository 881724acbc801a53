"""Files opened below one folder, and nowhere else, whatever their names and links say."""

import contextlib
import os
import re
import stat
from collections.abc import Sequence

from b3_core.pixels import MediaError

_DEEPEST = 64  # folders below the root
_LINKS = 40  # followed for one file, as Linux does
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def parts_of(file: str) -> list[str]:
    """Return the names that a path below a media root is made of.

    Raises
    ------
    MediaError
        It is a URL, absolute, leads out, or is no path at all.
    """
    if "\0" in file or "\\" in file or not _is_utf8(file):
        raise MediaError("is no path of UTF-8 names with forward slashes")
    if "://" in file or re.match(r"(data|file|[a-z]):", file, re.IGNORECASE):
        raise MediaError("is a URL; media are files below the media root")
    if file.startswith("/"):
        raise MediaError("is an absolute path; media are files below the media root")
    parts = [part for part in file.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise MediaError("leads out of the media root")
    if not parts or re.search(r"/\.?$", file):
        raise MediaError("names no file")
    return parts


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def open_below(root: str, parts: Sequence[str]) -> int:
    """Open a regular file without ever opening anything outside a folder.

    Each name is looked up in the open folder before it, and links are followed by hand: what is
    changed meanwhile can make this fail, and not lead elsewhere.

    Returns
    -------
    int
        A descriptor.

    Raises
    ------
    MediaError, OSError
        A link leads out, or there is no such regular file.
    """
    names, links = [*reversed(parts)], 0
    with contextlib.ExitStack() as opened:
        folders = [_closed(opened, os.open(root, _FOLDER))]
        while names:
            name = names.pop()
            if name == "..":  # of a link
                folders.pop()
            elif name not in ("", "."):
                mode = os.stat(name, dir_fd=folders[-1], follow_symlinks=False).st_mode
                if stat.S_ISLNK(mode):
                    links += 1
                    target = os.readlink(name, dir_fd=folders[-1])
                    if target.startswith("/"):
                        # Nothing outside is even looked at: it must begin with the root.
                        inside = f"{target}/".startswith(f"{root.rstrip('/')}/")
                        target = target[len(root) :]
                        del folders[1 if inside else 0 :]
                    names += reversed(target.split("/"))
                elif stat.S_ISDIR(mode):
                    folders.append(_closed(opened, os.open(name, _FOLDER, dir_fd=folders[-1])))
                elif not stat.S_ISREG(mode):
                    raise MediaError("is no regular file")
                elif not names:
                    return os.open(name, _FILE, dir_fd=folders[-1])
                else:
                    raise MediaError("is not there")
            if not folders:
                raise MediaError("leads out of the media root")
            if links > _LINKS or len(folders) > _DEEPEST:
                raise MediaError("lies too deep, or behind too many links")
    raise MediaError("is no regular file")


def _closed(opened: contextlib.ExitStack, descriptor: int) -> int:
    opened.callback(os.close, descriptor)
    return descriptor
