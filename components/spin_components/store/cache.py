"""Files of object storage kept here by their content: nothing is fetched twice, nothing used unchecked."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from spin_components.store.digests import FileDigest, digest_file
from spin_components.store.limits import gibibytes

logger = logging.getLogger(__name__)

FOLDER = "SPIN_CACHE_DIR"
LIMIT = "SPIN_CACHE_GIB"
_LOCK = ".lock"
_ABANDONED_S = 24 * 3600.0


def cache_folder() -> Path:
    """`SPIN_CACHE_DIR`, or `spin-pipelines` in the user's cache folder."""
    if folder := os.environ.get(FOLDER):
        return Path(folder).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spin-pipelines"


def cache_limit() -> int:
    """`SPIN_CACHE_GIB` in bytes; 50 GiB by default.

    Raises:
        ConfigError: it is no number, or below 0.
    """
    return gibibytes(LIMIT, 50.0)


class FileCache:
    """Files named by their SHA-256, the least recently used ones removed when there are too many.

    A `View` gives files their names by hard links, so that what one process uses another may remove from the cache.

    Args:
        folder: of the cache.
        limit_bytes: of all files together; what is in use may exceed it.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._blobs, self._views, self._tags = folder / "files", folder / "views", folder / "tags"
        self._limit_bytes = limit_bytes
        for path in (self._blobs, self._views, self._tags):
            path.mkdir(parents=True, exist_ok=True)

    def has(self, digest: FileDigest) -> bool:
        """Whether a file of this content is there and still is what it should be; one that is not, is removed."""
        path = self._path(digest)
        try:
            if digest_file(path) == digest:
                os.utime(path)
                return True
        except FileNotFoundError:
            return False
        logger.warning("%s in the cache was altered; it is fetched again", path)
        path.unlink(missing_ok=True)
        return False

    def free_path(self) -> Path:
        """A name beside the cached files to write one at."""
        return self._blobs / f".{uuid.uuid4().hex}.part"

    def add(self, path: Path, digest: FileDigest) -> None:
        """Take over a file whose digest is known; it leaves its place."""
        target = self._path(digest)
        target.parent.mkdir(exist_ok=True)
        path.chmod(0o444)
        path.replace(target)

    def remember(self, tag: str, digest: FileDigest) -> None:
        """Note what was found behind a storage's own tag."""
        path = self.free_path()
        path.write_text(digest.model_dump_json(), "utf-8")
        path.replace(self._tags / tag)

    def recall(self, tag: str) -> FileDigest | None:
        """What `remember` noted."""
        with suppress(FileNotFoundError, ValidationError):
            return FileDigest.model_validate_json((self._tags / tag).read_text("utf-8"))
        return None

    def trim(self) -> None:
        """Remove the least recently used files beyond the limit, and what processes that died left."""
        _remove_abandoned(self._views)
        for path in self._blobs.glob(".*.part"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    path.unlink()
        found = []
        for path in self._blobs.glob("??/*"):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            found.append((stat.st_mtime, stat.st_size, path))
        excess = sum(size for _, size, _ in found) - self._limit_bytes
        for _, size, path in sorted(found):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size

    def view(self) -> View:
        """An empty view."""
        return View(self._views / uuid.uuid4().hex)

    def link(self, digest: FileDigest, path: Path) -> bool:
        """Give a cached file a name in a view; False where it has just been removed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.hardlink_to(self._path(digest))
        except FileExistsError:
            return True
        except FileNotFoundError:
            return False
        return True

    def _path(self, digest: FileDigest) -> Path:
        return self._blobs / digest.sha256[:2] / digest.sha256


class View:
    """A folder of this process in which cached files have names; gone when it is closed or the process has died."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self.folder = place / "files"
        self._given: dict[str, FileDigest] = {}
        hidden = place.with_name(f".{place.name}")
        (hidden / self.folder.name).mkdir(parents=True)
        self._lock = os.open(hidden / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        hidden.rename(place)  # from here on others see it, and that it is locked

    def lacking(self, files: Mapping[str, FileDigest]) -> dict[str, FileDigest]:
        """Those of some files that the view does not hold."""
        return {key: digest for key, digest in files.items() if self._given.get(key) != digest}

    def free_path(self) -> Path:
        """A name to download a file to; removed with the view if it is not taken into the cache."""
        return self._place / uuid.uuid4().hex

    def place(self, key: str, digest: FileDigest) -> Path:
        """Where a file is to be linked."""
        path = self.folder / key
        if key in self._given:
            path.unlink(missing_ok=True)
        self._given[key] = digest
        return path

    def forget(self, key: str) -> None:
        """A file could not be linked after all."""
        del self._given[key]

    def close(self) -> None:
        """Remove the names."""
        shutil.rmtree(self._place, ignore_errors=True)
        os.close(self._lock)


def _remove_abandoned(views: Path) -> None:
    for hidden in views.glob(".*"):  # of a process that died while it made one
        with suppress(FileNotFoundError):
            if time.time() - hidden.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(hidden, ignore_errors=True)
    for folder in views.glob("[!.]*"):
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDWR)
        except OSError:  # just made, or just removed
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)
