"""PyTorch's extensions, which DeepSpeed compiles at first use (`torch.utils.cpp_extension`): locks and failures.

A process that compiles an extension holds a file `lock` beside it, and every other one waits until that file is gone. A
process that was killed leaves it behind, and all later ones would wait for ever.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spin_components.errors import ConfigError

logger = logging.getLogger(__name__)

_PROCESSES = Path("/proc")
_FAILED = re.compile(r"Error building extension '(\w+)'|Ninja is required")  # messages of torch.utils.cpp_extension
_REASON = re.compile(r"(?m)^.*(?:\bnot found|No such file|error: |Ninja is required).*$")


@contextmanager
def extensions_compiled() -> Iterator[None]:
    """Run a block that may compile an extension, and name what is missing where it cannot be compiled.

    Raises:
        ConfigError: a compiler, ninja or a header is missing, or a source does not compile.
    """
    try:
        yield
    except RuntimeError as error:
        if not (failed := _FAILED.search(text := str(error))):
            raise
        reason = found[0].strip() if (found := _REASON.search(text)) else text.strip().splitlines()[-1]
        raise ConfigError(
            f"DeepSpeed compiles its extension {failed[1] or ''} when it is first used, which failed: {reason}; "
            "install g++ and ninja, use an image that has the extension, or set training.backend = 'torch'"
        ) from error


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
