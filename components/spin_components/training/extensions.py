"""Locks of PyTorch's extensions, which DeepSpeed compiles at first use (`torch.utils.cpp_extension`).

A process that compiles an extension holds a file `lock` beside it, and every other one waits until that file is gone. A
process that was killed leaves it behind, and all later ones would wait for ever.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

_PROCESSES = Path("/proc")


def remove_stale_locks() -> list[Path]:
    """Remove the locks of extensions that no process of this machine holds; returns them.

    A holder keeps its file open. Without `/proc`, or where another user's processes may hold it, nothing is removed.
    """
    if not (_PROCESSES / "self/fd").is_dir():
        return []
    removed = []
    for lock in sorted(_root().glob("**/lock")):
        with suppress(OSError):
            status = lock.stat()
            if status.st_uid == os.geteuid() and (status.st_dev, status.st_ino) not in _open_files():
                lock.unlink()
                logger.warning("removed %s, which a process that was killed left", lock)
                removed.append(lock)
    return removed


def _root() -> Path:
    """The folder of compiled extensions, as `torch.utils.cpp_extension` chooses it."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(cache) / "torch_extensions")


def _open_files() -> set[tuple[int, int]]:
    """Device and inode of every file that a process has open, of those that this user may look at."""
    return set(_identities())


def _identities() -> Iterator[tuple[int, int]]:
    for descriptor in _PROCESSES.glob("[0-9]*/fd/*"):
        with suppress(OSError):  # it has been closed, or is another user's
            status = descriptor.stat()
            yield status.st_dev, status.st_ino
