"""The storage of one run: keys in, local paths out, every write whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from spin_components.errors import ConfigError, IntegrityError


def local_path(uri: str, *, what: str) -> Path:
    """The path that a plain path or a `file://` URI names.

    Args:
        uri: the address.
        what: the setting it came from, for the error.

    Raises:
        ConfigError: empty, or of another scheme.
    """
    if not uri:
        raise ConfigError(f"{what} is empty; expected a path or file:// URI")
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return _normal(unquote(parts.path))
    if parts.scheme and "://" in uri:
        raise ConfigError(f"{what} = {uri!r}: scheme {parts.scheme!r} is not supported; expected a path or file:// URI")
    return _normal(uri)


def _normal(path: str) -> Path:
    """Absolute and without `..`, so that one place has one name."""
    return Path(os.path.normpath(Path(path).absolute()))


class RunStore:
    """Files of a run below one folder.

    A write goes to a hidden name beside its place and is renamed into it, so that a reader, or a process that
    comes after a crash, finds the whole object or none.
    """

    def __init__(self, run_uri: str) -> None:
        self.root = local_path(run_uri, what="run.uri")
        if self.root.exists() and not self.root.is_dir():
            raise ConfigError(f"run.uri = {run_uri!r} is a file; expected a folder, or a name that is free")

    @property
    def uri(self) -> str:
        return str(self.root)

    def path(self, key: str) -> Path:
        """Local path of an object, whether it exists or not."""
        return self.root / key

    def uri_of(self, key: str) -> str:
        """Address of an object, as it travels between steps."""
        return str(self.root / key)

    def key_of(self, uri: str) -> str | None:
        """The key of an address within this run; None for an address elsewhere."""
        path = local_path(uri, what="address")
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else None

    def exists(self, key: str) -> bool:
        return self.path(key).exists()

    def list(self, prefix: str, pattern: str) -> list[str]:
        """Keys below a folder that match a glob pattern, sorted."""
        return sorted(path.relative_to(self.root).as_posix() for path in self.path(prefix).glob(pattern))

    def read_json(self, key: str) -> Any:
        """Parse a JSON object.

        Raises:
            IntegrityError: it is missing or not JSON.
        """
        path = self.path(key)
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise IntegrityError(f"{path} is missing; the step that writes it has not finished") from error
        except ValueError as error:
            raise IntegrityError(f"{path} is not JSON ({error}); delete it to have its step run again") from error

    def write_json(self, key: str, value: object) -> None:
        """Write a JSON object, replacing any that is there, in one move."""
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        with self.staged(key) as path:
            path.write_text(text, encoding="utf-8")

    @contextmanager
    def staged(self, key: str) -> Iterator[Path]:
        """A path to write a file or fill a folder at; it takes the place of `key` when the block ends well."""
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            yield staging
            if not staging.exists():
                raise IntegrityError(f"nothing was written for {target}; what was there is kept")
            _sync(staging)
            if target.is_dir():
                shutil.rmtree(target)
            staging.replace(target)
        finally:
            _remove(staging)

    def delete(self, key: str) -> int:
        """Remove a file or folder if it is there; returns the bytes freed."""
        path = self.path(key)
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        num_bytes = sum(file.stat().st_size for file in files)
        _remove(path)
        return num_bytes

    def sweep(self, prefix: str) -> None:
        """Remove what writers that died left below a folder."""
        for path in self.path(prefix).rglob(".*.part"):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have the bytes on disk before a name points to them."""
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
