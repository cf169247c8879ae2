"""Storage of a run in a local folder; writes are atomic renames."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from spin_components.errors import ConfigError, StorageAccessError
from spin_components.store import layout
from spin_components.store.base import RunStore, remove
from spin_components.store.digests import FileDigest, digest_file, digest_tree, verify_file
from spin_components.store.keys import flaw_of, is_inside, place
from spin_components.store.lock import replacing
from spin_components.store.ownership import leftovers
from spin_components.store.renames import make_folder, put_in_place, sync
from spin_components.store.stored import Guard, Stored

logger = logging.getLogger(__name__)


class LocalRun(RunStore):
    """Storage of a run in one folder.

    A file is written under a hidden name in the target's folder, synced and renamed, so that a reader, also after a
    crash, sees the complete file or none.

    Raises:
        ConfigError: the path is a file.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)
        self.scratch = root
        if root.exists() and not root.is_dir():
            raise ConfigError(f"run.uri = {str(root)!r} is a file; expected a folder, or an unused path")

    def path(self, key: str) -> Path:
        """Return the local path of a key, which need not exist.

        Raises:
            IntegrityError: the key, or a symbolic link on its way, leads out of the run.
        """
        return place(self.root, key)

    def exists(self, key: str) -> bool:
        return self.path(key).is_file()

    def sizes(self, prefix: str) -> dict[str, int]:
        folder = self.path(prefix) if prefix else self.root
        keys = {path.relative_to(self.root).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        return {
            key: path.stat().st_size
            for key, path in keys.items()
            if not _is_staging(key) and not flaw_of(key) and not (path.is_symlink() and not is_inside(self.root, path))
        }

    def read(self, key: str, offset: int = 0) -> bytes | None:
        try:
            with self.path(key).open("rb") as file:
                file.seek(offset)
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, key: str, content: bytes) -> None:
        with self._staging(key) as path:
            path.write_bytes(content)
            self._move(path, key)

    def read_stored(self, key: str) -> Stored | None:
        try:
            with self.path(key).open("rb") as file:
                return Stored(file.read(), _tag(os.fstat(file.fileno())), os.fstat(file.fileno()).st_mtime)
        except FileNotFoundError:
            return None

    def tag_of(self, key: str) -> str | None:
        try:
            return _tag(self.path(key).stat())
        except FileNotFoundError:
            return None

    def create(self, key: str, content: bytes) -> bool:
        with self._staging(key) as path:
            path.write_bytes(content)
            sync(path)
            try:
                os.link(path, self.path(key))
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                return _create_exclusively(self.path(key), content)
        return True

    def replace(self, key: str, content: bytes, tag: str | None, guard: Guard | None = None) -> bool:
        with self._staging(key) as path, replacing(self.path(layout.WRITING)):
            path.write_bytes(content)
            if guard is not None:
                guard()
            if self.tag_of(key) != tag:
                return False
            self._move(path, key)
        return True

    def now(self) -> float | None:
        try:
            with self._staging(".clock") as path:
                path.touch()
                return path.stat().st_mtime
        except OSError:  # a reader without the right to write
            return None

    def fetch(self, files: Mapping[str, FileDigest], *, what: str, made_by: str = "") -> Path:
        remedy = f"delete {self.uri_of(made_by)} to have its step run again" if made_by else ""
        for key, digest in files.items():
            verify_file(self.path(key), digest, what=what, remedy=remedy)
        return self.root

    def remove(self, key: str) -> int:
        path = self.path(key)
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        num_bytes = sum(file.stat().st_size for file in files)
        if path.exists() or path.is_symlink():
            doomed = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
            path.replace(doomed)  # at once: a process that is killed now leaves no half of a folder
            remove(doomed)
        return num_bytes

    def sweep(self, *, dry_run: bool = False) -> Sequence[str]:
        if self.guard is not None:
            self.guard()
        partial = list(leftovers(self.root))
        for path in partial:
            if not dry_run:
                remove(path)
        return [path.relative_to(self.root).as_posix() for path in partial]

    def probe(self) -> None:
        path = self.path(f".probe.{uuid.uuid4().hex[:8]}.part")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"probe")
            if path.read_bytes() != b"probe":
                raise OSError("the content read differs from the content written")
            path.unlink()
        except OSError as error:
            raise StorageAccessError(
                f"run.uri = {self.uri!r} cannot be written and read back: {error.strerror or error}; "
                "check its permissions and the space left, or choose another folder"
            ) from error

    def appender(self, key: str) -> FileAppender:
        return FileAppender(self.path(key))

    @contextmanager
    def _staging(self, key: str) -> Iterator[Path]:
        target = self.path(key)
        make_folder(target.parent)
        staging = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            yield staging
        finally:
            remove(staging)

    def _publish(self, path: Path, key: str) -> dict[str, FileDigest]:
        if path.is_dir():
            outputs = {f"{key}/{name}": file for name, file in digest_tree(path).items()}
        else:
            outputs = {key: digest_file(path)}
        if self.guard is not None:
            self.guard()
        self._move(path, key)
        return outputs

    def _move(self, path: Path, key: str) -> None:
        sync(path)
        put_in_place(path, self.path(key))


class FileAppender:
    """Appends lines to a file; failing writes are logged as a warning."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._broken = False

    def write(self, line: str) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            if not self._broken:
                logger.warning("%s cannot be written: %s", self._path, error)
            self._broken = True

    def close(self) -> None:
        """Do nothing: every line is written at once."""


def _tag(status: os.stat_result) -> str:
    """Return what differs between a file and the one that a rename puts in its place."""
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


def _create_exclusively(path: Path, content: bytes) -> bool:
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def _is_staging(key: str) -> bool:
    return any(part.startswith(".") and part.endswith(".part") for part in key.split("/"))
