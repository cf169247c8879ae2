"""Limits of this machine: cores, memory, and limits that environment variables set."""

from __future__ import annotations

import math
import os
from pathlib import Path

from spin_components.errors import ConfigError


def num_cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def memory_bytes(root: Path = Path("/")) -> tuple[int, int]:
    """Total and available memory in bytes, of this machine or of this process's control group.

    Pages of files that the kernel may drop count as available. (0, 0) on systems other than Linux.

    Args:
        root: of the file system, for tests.
    """
    try:
        lines = (root / "proc/meminfo").read_text("ascii").splitlines()
        fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
        total, available = fields["MemTotal"], fields["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        return 0, 0
    for limit, used, inactive in _control_groups(root):
        if limit < total:
            total = limit
        available = min(available, max(limit - used + inactive, 0))
    return total, available


def _control_groups(root: Path) -> list[tuple[int, int, int]]:
    """Limit, use and inactive file pages, in bytes, of each control group of this process; of version 2 or 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text("ascii").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        base = root / "sys/fs/cgroup" / kinds
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
        inside = base / path.strip("/")
        for folder in (inside, *inside.parents):
            if not folder.is_relative_to(base):
                break
            try:
                limit, used = (int((folder / name).read_text("ascii")) for name in names)
            except (OSError, ValueError):  # no such file, or "max": no limit
                continue
            found.append((limit, used, _inactive_file_bytes(folder)))
    return found


def _inactive_file_bytes(folder: Path) -> int:
    try:
        lines = (folder / "memory.stat").read_text("ascii").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    except (OSError, ValueError, IndexError):
        return 0


def seconds(name: str, default: float) -> float:
    """A number of seconds above 0 from an environment variable.

    Raises:
        ConfigError: it is something else.
    """
    return _number(name, default, "a number of seconds above 0", least=math.ulp(0.0))


def gibibytes(name: str, default: float) -> int:
    """A size in bytes from an environment variable in GiB, 0 or more.

    Raises:
        ConfigError: it is something else.
    """
    return int(_number(name, default, "a number of GiB, 0 or more", least=0.0) * 2**30)


def _number(name: str, default: float, expected: str, *, least: float) -> float:
    text = os.environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= least):
        raise ConfigError(f"{name} = {text!r}: expected {expected}")
    return value
