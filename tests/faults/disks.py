"""A disk of a few hundred KiB that is full soon: a tmpfs of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LARGE_KIB = 64 << 10


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[None]:
    """Mount one at a folder; skips the test where that is not permitted."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def enlarge(folder: Path) -> None:
    """Give a mounted disk more room than a run needs."""
    subprocess.run(["mount", "-o", f"remount,size={LARGE_KIB}k", str(folder)], check=True)
