"""SHA-256 of files, folders and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from spin_components.errors import IntegrityError


class FileDigest(BaseModel):
    """What a file must be: its size in bytes and its SHA-256 in hex."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_bytes: int
    sha256: str


FileDigests = Mapping[str, FileDigest]
"""Path relative to some folder, with `/`, to digest."""


def digest_file(path: Path) -> FileDigest:
    """Read a file once and describe it."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileDigest(num_bytes=path.stat().st_size, sha256=sha256)


def digest_tree(folder: Path) -> dict[str, FileDigest]:
    """Describe every file below a folder, in the order of their names."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest_file(path) for path in files}


def digest_json(value: object) -> str:
    """SHA-256 of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of(files: FileDigests) -> str:
    """One SHA-256 for a set of files: names and contents, not times."""
    return digest_json({name: file.sha256 for name, file in files.items()})


def content_of(files: FileDigests) -> str:
    """One SHA-256 for a data set: a single file is what it holds, whatever its name."""
    return next(iter(files.values())).sha256 if len(files) == 1 else digest_of(files)


def verify_tree(folder: Path, expected: FileDigests, *, what: str, remedy: str = "") -> None:
    """Check files against their digests before they are used.

    Args:
        folder: where the files are.
        expected: what each must be.
        what: named in the error, e.g. "the reference policy".
        remedy: what a person can do, for the error.

    Raises:
        IntegrityError: a file is missing, has another size or other content.
    """
    for name, digest in expected.items():
        verify_file(folder / name, digest, what=what, remedy=remedy)


def verify_file(path: Path, expected: FileDigest, *, what: str, remedy: str = "") -> None:
    """Check one file; see `verify_tree`."""
    if not path.is_file():
        raise damaged(str(path), "is missing", f"{expected.num_bytes} bytes", what=what, remedy=remedy)
    if (size := path.stat().st_size) != expected.num_bytes:
        raise damaged(str(path), f"has {size} bytes", str(expected.num_bytes), what=what, remedy=remedy)
    if (found := digest_file(path).sha256) != expected.sha256:
        raise damaged(str(path), f"has SHA-256 {found[:12]}…", f"{expected.sha256[:12]}…", what=what, remedy=remedy)


def damaged(address: str, found: str, expected: str, *, what: str, remedy: str = "") -> IntegrityError:
    """The error for an object that is not what its manifest says: where, found, expected, what to do."""
    message = f"{address} {found}, expected {expected}. {what} cannot be used"
    return IntegrityError(f"{message}; {remedy}" if remedy else f"{message}; put back what was there")
