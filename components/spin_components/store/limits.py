"""Cores and memory of this machine, and limits from environment variables."""

from __future__ import annotations

import math
import os
from pathlib import Path

from spin_components.errors import ConfigError


def num_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def memory_bytes(root: Path = Path("/")) -> tuple[int, int]:
    """Return total and available memory in bytes, of the machine or of this process's control group if that has less.

    File pages that can be dropped count as available. (0, 0) where neither is known, as on systems other than Linux.

    Args:
        root: root of the file system; tests use another.
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
    """Return limit, usage and inactive file pages, in bytes, of this process's control groups (version 1 or 2)."""
    try:
        lines = (root / "proc/self/cgroup").read_text("ascii").splitlines()
    except OSError:
        return []
    groups = []
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
            groups.append((limit, used, _inactive_file_bytes(folder)))
    return groups


def _inactive_file_bytes(folder: Path) -> int:
    try:
        lines = (folder / "memory.stat").read_text("ascii").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    except (OSError, ValueError, IndexError):
        return 0


def seconds(name: str, default: float) -> float:
    """Read a duration above 0, in seconds, from an environment variable.

    Raises:
        ConfigError: the variable has another value.
    """
    return _number(name, default, "a number of seconds above 0", least=math.ulp(0.0))


def gibibytes(name: str, default: float) -> int:
    """Read a size of 0 or more from an environment variable in GiB; returns bytes.

    Raises:
        ConfigError: the variable has another value.
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
