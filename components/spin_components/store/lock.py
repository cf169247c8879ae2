"""A lock on a run, for the processes of this machine; the kernel releases it when all its holders have ended.

The lease in the run's storage (`spin_components.store.lease`) does the same between machines, but holds for minutes
after a process has died.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spin_components.errors import BusyError

_NAME = ".lock"
_PATIENCE_S = 5.0
_REPLACING_PATIENCE_S = 30.0


@contextmanager
def locked(scratch: Path) -> Iterator[int]:
    """Hold the lock of a run; yields its file descriptor, with which child processes that inherit it hold it too.

    Waits up to 5 seconds, in which the steps of a runner that was killed end.

    Args:
        scratch: the run's folder on this machine.

    Raises:
        BusyError: another runner holds it.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(scratch / _NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _wait_for(descriptor, _PATIENCE_S, poll_s=0.2):
            raise BusyError(
                f"another runner is at work on this run, on this machine ({scratch / _NAME} is held); wait for it, "
                "end it, or choose another run.uri"
            )
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(scratch: Path) -> bool:
    """Whether a process of this machine holds the lock: a runner, or a step that it started."""
    try:
        descriptor = os.open(scratch / _NAME, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _try(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(file: Path) -> Iterator[None]:
    """Hold the lock on a file while another one is compared and then replaced.

    File systems without locks are used without one.

    Args:
        file: the lock's file; created if needed.

    Raises:
        BusyError: another process has held the lock for 30 s; it has been stopped in the middle of a write.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)  # for writing: NFS locks nothing else exclusively
    try:
        with suppress(OSError):
            if not _wait_for(descriptor, _REPLACING_PATIENCE_S, poll_s=0.01):
                raise BusyError(
                    f"another process holds the lock {file}, in the middle of a write; it may have been stopped. End "
                    "it, and run the same command"
                )
        yield
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int, patience_s: float, *, poll_s: float) -> bool:
    """Take a lock, waiting for it; False where others hold it all the while."""
    deadline = time.monotonic() + patience_s
    while not _try(descriptor):
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_s)
    return True


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
