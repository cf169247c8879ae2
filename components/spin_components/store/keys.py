"""Keys: paths of files relative to the run, model or data set that they belong to; each is checked before it is used.

A key comes from a manifest, a bucket's listing or a pointer, which somebody else may have written.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from spin_components.errors import IntegrityError

_DRIVE = re.compile(r"[A-Za-z]:([\\/]|$)|\\\\")
_LONGEST = 255
"""Bytes of a name that file systems take."""


def flaw_of(key: str) -> str:
    """Say why a key may name a file outside its folder, or none at all; empty for a proper key."""
    if not key:
        return "is empty"
    if "\0" in key:
        return "has a NUL"
    if key.startswith("/") or _DRIVE.match(key):
        return "is an absolute path"
    parts = key.split("/")
    if ".." in parts or "." in parts:
        return "has '.' or '..'"
    if "" in parts:
        return "has an empty part between two '/'"
    try:
        longest = max(len(part.encode()) for part in parts)
    except UnicodeEncodeError:
        return "is not text in UTF-8"
    return f"has a name of more than {_LONGEST} bytes" if longest > _LONGEST else ""


def check_key(key: str, *, where: str) -> str:
    """Return a key that stays inside its folder.

    Args:
        key: `/`-separated, relative.
        where: what the key is from, for the error.

    Raises:
        IntegrityError: the key is absolute, has `..`, or is otherwise no path below a folder.
    """
    if flaw := flaw_of(key):
        raise IntegrityError(
            f"{where} names the file {shown(key)}, which {flaw}; expected a path inside the folder, like a/b.json. "
            "Nothing was read or written there; restore the original, or rename the file where it is stored"
        )
    return key


def place(folder: Path, key: str, *, where: str = "") -> Path:
    """Return the path of a key in a folder; the file need not exist.

    Args:
        folder: the folder, which may itself be reached through a symbolic link.
        key: of the file or folder in it.
        where: what the key is from, for the error; by default the folder.

    Raises:
        IntegrityError: as `check_key`; or a symbolic link on the way leads out of the folder.
    """
    where = where or str(folder)
    path = folder / check_key(key, where=where)
    root, real = os.path.realpath(folder), os.path.realpath(path)
    if not real.startswith(f"{root.rstrip('/')}/"):
        raise IntegrityError(
            f"{where}: {shown(key)} is, or lies behind, a symbolic link that leads out of the folder; expected a file "
            "inside it. Nothing was read or written there; replace the link by what it points to"
        )
    return path


def is_inside(folder: Path, path: Path) -> bool:
    """Whether a path below a folder is there in fact, after symbolic links."""
    return os.path.realpath(path).startswith(f"{os.path.realpath(folder).rstrip('/')}/")


def shown(text: str) -> str:
    """Text of a stranger for a message: quoted, and its middle left out where it is long."""
    quoted = ascii(text)
    return quoted if len(quoted) <= 100 else f"{quoted[:60]}…{quoted[-30:]}"
