"""Local cache of files from object storage, addressed by SHA-256; every file is verified before it is used."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from spin_components.errors import IntegrityError
from spin_components.machine import gibibytes
from spin_components.store.digests import FileDigest, digest_file
from spin_components.store.keys import place, shown

logger = logging.getLogger(__name__)

FOLDER = "SPIN_CACHE_DIR"
"""Environment variable with the cache's folder."""
LIMIT = "SPIN_CACHE_GIB"
"""Environment variable with the cache's size limit, GiB; default 50."""
_LOCK = ".lock"
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_ABANDONED_S = 24 * 3600.0
_HEX = "[0-9a-f]"


def cache_folder() -> Path:
    """Return the cache's folder: `SPIN_CACHE_DIR`, or `spin-pipelines` in the user's cache folder.

    A volume may not be writable by the pod's user, since KFP sets no `fsGroup`: the machine's own disk stands in.
    """
    if folder := os.environ.get(FOLDER):
        return _writable(Path(folder).absolute())
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spin-pipelines"


@cache
def _writable(folder: Path) -> Path:
    """The folder, or one for temporary files where nothing can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        if error.errno not in _DENIED:
            return folder  # whoever writes there says what is wrong
        other = Path(tempfile.gettempdir(), f"spin-cache-{os.getuid()}")
        logger.warning(
            "the cache %s (%s) is not writable by user %d (%s); %s is used, and not kept. Let group %d write there",
            folder,
            FOLDER,
            os.getuid(),
            error.strerror,
            other,
            os.getgid(),
        )
        if Path(os.environ.get("HF_HOME", "/")).is_relative_to(folder):
            os.environ["HF_HOME"] = str(other / "huggingface")
        return other


def cache_limit() -> int:
    """Return the cache's size limit in bytes, from `SPIN_CACHE_GIB`.

    Raises:
        ConfigError: the variable is not a number of 0 or more.
    """
    return gibibytes(LIMIT, 50.0)


class FileCache:
    """Files named by their SHA-256, with least-recently-used eviction.

    A process uses cached files through hard links in its `View`, so other processes may evict a file that is in use.

    Args:
        folder: folder of the cache.
        limit_bytes: size limit of all files together; `trim` evicts files above it.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._blobs, self._views, self._tags = folder / "files", folder / "views", folder / "tags"
        self._limit_bytes = limit_bytes
        for path in (self._blobs, self._views, self._tags):
            path.mkdir(parents=True, exist_ok=True)

    def has(self, digest: FileDigest) -> bool:
        """Whether a file with this content is cached; a file whose content has changed is removed."""
        path = self._path(digest)
        try:
            if digest_file(path) == digest:
                os.utime(path)
                return True
        except FileNotFoundError:
            return False
        logger.warning("%s in the cache was altered; it is downloaded again", path)
        path.unlink(missing_ok=True)
        return False

    def free_path(self) -> Path:
        """Return an unused path on the cache's file system for a file to add."""
        return self._blobs / f".{uuid.uuid4().hex}.part"

    def add(self, path: Path, digest: FileDigest) -> None:
        """Move a file with a known digest into the cache."""
        target = self._path(digest)
        target.parent.mkdir(exist_ok=True)
        path.chmod(0o444)
        path.replace(target)

    def remember(self, tag: str, digest: FileDigest) -> None:
        """Record the digest of the object with an ETag of the storage."""
        path = self.free_path()
        path.write_text(digest.model_dump_json(), "utf-8")
        path.replace(self._tags / tag)

    def recall(self, tag: str) -> FileDigest | None:
        """Return the digest that `remember` recorded for a tag; None if there is none."""
        with suppress(FileNotFoundError, ValidationError):
            return FileDigest.model_validate_json((self._tags / tag).read_text("utf-8"))
        return None

    def trim(self) -> None:
        """Remove the least recently used files above the limit, and leftovers of processes that died."""
        _remove_abandoned(self._views)
        for path in self._blobs.glob(f".{_HEX * 32}.part"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    path.unlink()
        files = []
        for path in self._blobs.glob(f"{_HEX * 2}/{_HEX * 64}"):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            files.append((stat.st_mtime, stat.st_size, path))
        excess = sum(size for _, size, _ in files) - self._limit_bytes
        for _, size, path in sorted(files):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size

    def view(self) -> View:
        """Create an empty view."""
        return View(self._views / uuid.uuid4().hex)

    def link(self, digest: FileDigest, path: Path) -> bool:
        """Hard-link a cached file to a path in a view; False if another process has just removed it from the cache.

        Raises:
            IntegrityError: the file system has another file, or a folder, under the same name.
        """
        blob = self._path(digest)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.hardlink_to(blob)
        except (FileExistsError, NotADirectoryError) as error:
            with suppress(FileNotFoundError, NotADirectoryError):
                if path.samefile(blob):
                    return True
            raise IntegrityError(
                f"{shown(path.name)} has the name of another file or folder beside it on this file system; rename one "
                "of them where they are stored"
            ) from error
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            return self._copy(digest, path)
        return True

    def _copy(self, digest: FileDigest, path: Path) -> bool:
        """Copy instead, on file systems without hard links, such as SMB."""
        try:
            shutil.copyfile(self._path(digest), path)
        except FileNotFoundError:
            return False
        path.chmod(0o444)
        return True

    def _path(self, digest: FileDigest) -> Path:
        return self._blobs / digest.sha256[:2] / digest.sha256


class View:
    """A folder with hard links to cached files, named by their keys; removed by `close`, or once its process died.

    Attributes:
        folder: folder of the links.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folder = root / "files"
        self._linked: dict[str, FileDigest] = {}
        hidden = root.with_name(f".{root.name}")
        (hidden / self.folder.name).mkdir(parents=True)
        self._lock = os.open(hidden / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        hidden.rename(root)  # other processes see the view only once it is locked

    def missing(self, files: Mapping[str, FileDigest]) -> dict[str, FileDigest]:
        """Return those of the files that the view does not hold."""
        return {key: digest for key, digest in files.items() if self._linked.get(key) != digest}

    def free_path(self) -> Path:
        """Return an unused path to download a file to; removed with the view."""
        return self._root / uuid.uuid4().hex

    def link_path(self, key: str, digest: FileDigest) -> Path:
        """Register a file under its key and return the path to link it to; an earlier link is removed.

        Raises:
            IntegrityError: the key leads out of the view.
        """
        path = place(self.folder, key, where="a listing or manifest in storage")
        if key in self._linked:
            path.unlink(missing_ok=True)
        self._linked[key] = digest
        return path

    def forget(self, key: str) -> None:
        """Undo `link_path`, for a file that could not be linked."""
        del self._linked[key]

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._root, ignore_errors=True)
        os.close(self._lock)


def _remove_abandoned(views: Path) -> None:
    """Remove the views of processes that died."""
    for hidden in views.glob(f".{_HEX * 32}"):  # the process died while it created the view
        with suppress(FileNotFoundError):
            if time.time() - hidden.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(hidden, ignore_errors=True)
    for folder in views.glob(_HEX * 32):
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDWR)
        except OSError:  # another process has just created or removed it
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)
