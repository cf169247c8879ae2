"""A disk of a few hundred KiB, as a tmpfs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LARGE_KIB = 64 << 10


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[None]:
    """Mount a small disk at a folder; skips the test if that is not permitted."""
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
    """Enlarge a mounted disk beyond the needs of a run."""
    subprocess.run(["mount", "-o", f"remount,size={LARGE_KIB}k", str(folder)], check=True)
