"""SHA-256 of files, folders and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
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


def verify_tree(folder: Path, expected: FileDigests, *, what: str, names: Iterable[str] | None = None) -> None:
    """Check files against their digests before they are used.

    Args:
        folder: where the files are.
        expected: what each must be.
        what: named in the error, e.g. "the reference policy".
        names: check only these; all by default.

    Raises:
        IntegrityError: a file is missing, has another size or other content.
    """
    for name in expected if names is None else names:
        verify_file(folder / name, expected[name], what=what)


def verify_file(path: Path, expected: FileDigest, *, what: str) -> None:
    """Check one file; see `verify_tree`."""
    hint = f"{what} cannot be used. Delete the manifest of the step that wrote it to have it made again."
    if not path.is_file():
        raise IntegrityError(f"{path} is missing; expected {expected.num_bytes} bytes. {hint}")
    if (size := path.stat().st_size) != expected.num_bytes:
        raise IntegrityError(f"{path} has {size} bytes, expected {expected.num_bytes}. {hint}")
    if (found := digest_file(path).sha256) != expected.sha256:
        raise IntegrityError(f"{path} has SHA-256 {found[:12]}…, expected {expected.sha256[:12]}…. {hint}")
