"""Atomic replacement of files and folders by renames, on disk before it is relied upon.

A file system may lose a rename when the machine fails, until the folder that holds the name is synced.
"""

from __future__ import annotations

import ctypes
import errno
import os
import uuid
from functools import cache
from pathlib import Path
from typing import Any

from spin_components.store.base import remove

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def sync(path: Path) -> None:
    """Sync a file, or a folder with all that is in it, to disk; done before a rename."""
    for each in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if not each.is_symlink() and (each.is_file() or each.is_dir()):
            _sync_one(each)


def put_in_place(path: Path, target: Path) -> None:
    """Rename a synced file or folder to its place, replacing what is there; the rename is on disk at the end.

    A folder is exchanged with the one that it replaces, so that a process that is killed leaves the one or the other.
    Where the file system cannot exchange, the old folder is renamed first; nothing is at its place for that moment.
    """
    if target.is_dir() and not target.is_symlink():
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        if _exchange(path, target):
            aside = path
        else:
            target.rename(aside)
            path.rename(target)
        _sync_one(target.parent)
        remove(aside)
    else:
        path.replace(target)
        _sync_one(target.parent)


def make_folder(folder: Path) -> None:
    """Create a folder with its parents, each on disk in the one above."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_one(folder.parent)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF) or not path.is_dir():
            raise  # some network file systems sync no folders
    finally:
        os.close(descriptor)


@cache
def _renameat2() -> Any:
    """`renameat2` of the C library; None where there is none."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return function


def _exchange(path: Path, target: Path) -> bool:
    """Exchange two names atomically; False where the system or the file system cannot."""
    if (function := _renameat2()) is None:
        return False
    if function(_AT_FDCWD, os.fsencode(path), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(target))
