"""SHA-256 of files, folders and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from spin_components.errors import IntegrityError


class FileDigest(BaseModel):
    """Size in bytes and SHA-256 in hex of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


FileDigests = Mapping[str, FileDigest]
"""Digests by path, relative to some folder and with `/`."""


def digest_file(path: Path) -> FileDigest:
    """Compute the digest of a file, reading it once."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileDigest(num_bytes=path.stat().st_size, sha256=sha256)


def digest_tree(folder: Path) -> dict[str, FileDigest]:
    """Compute the digest of every file below a folder, by relative path, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest_file(path) for path in files}


def digest_json(value: object) -> str:
    """Compute the SHA-256, in hex, of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of(files: FileDigests) -> str:
    """Compute one SHA-256, in hex, over the names and contents of a set of files."""
    return digest_json({name: file.sha256 for name, file in files.items()})


def content_of(files: FileDigests) -> str:
    """Compute one SHA-256, in hex, of a data set; the name of a single file is left out."""
    return next(iter(files.values())).sha256 if len(files) == 1 else digest_of(files)


def verify_tree(folder: Path, expected: FileDigests, *, what: str, remedy: str = "") -> None:
    """Verify files against their digests.

    Args:
        folder: folder of the files.
        expected: digests by path relative to the folder.
        what: name of the files in the error, e.g. "the reference policy".
        remedy: what to do about a damaged file, for the error.

    Raises:
        IntegrityError: a file is missing or has another size or content.
    """
    for name, digest in expected.items():
        verify_file(folder / name, digest, what=what, remedy=remedy)


def verify_file(path: Path, expected: FileDigest, *, what: str, remedy: str = "") -> None:
    """Verify one file against its digest; see `verify_tree`."""
    if not path.is_file():
        raise damaged(str(path), "is missing", f"{expected.num_bytes} bytes", what=what, remedy=remedy)
    if (size := path.stat().st_size) != expected.num_bytes:
        raise damaged(str(path), f"has {size} bytes", str(expected.num_bytes), what=what, remedy=remedy)
    if (sha256 := digest_file(path).sha256) != expected.sha256:
        raise damaged(str(path), f"has SHA-256 {sha256[:12]}…", f"{expected.sha256[:12]}…", what=what, remedy=remedy)


def damaged(address: str, actual: str, expected: str, *, what: str, remedy: str = "") -> IntegrityError:
    """Create the error for a file that differs from its digest.

    Args:
        address: address of the file.
        actual: what the file is, as a predicate, e.g. "is missing".
        expected: what was expected, e.g. "17 bytes".
        what: name of the file's use, e.g. "the reference policy".
        remedy: what to do; by default, to restore the file.
    """
    message = f"{address} {actual}, expected {expected}. {what} cannot be used"
    return IntegrityError(f"{message}; {remedy}" if remedy else f"{message}; restore the original file")
