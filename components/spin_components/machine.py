"""The machine that a step ran on, for its manifest: cores, GPUs, and what its rounding depends on."""

from __future__ import annotations

import math
import os
import platform
import sys
from pathlib import Path
from typing import Any

from spin_components.errors import ConfigError


def num_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def memory_bytes(root: Path = Path("/")) -> tuple[int, int]:
    """Memory of this machine, or of the control group this process is in, and how much of it is free to take.

    Pages of files that may be dropped count as free. (0, 0) where neither is told, as on systems other than Linux.

    Args:
        root: of the file system; tests lay out another.
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
    """Limit, use and droppable file pages of every control group that this process is in, from version 2 or 1."""
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
    """A time above 0 from a variable.

    Raises:
        ConfigError: it is none.
    """
    return _number(name, default, "a number of seconds above 0", least=math.ulp(0.0))


def gibibytes(name: str, default: float) -> int:
    """A size of 0 or more from a variable that counts GiB, in bytes.

    Raises:
        ConfigError: it is none.
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


_PACKAGES = ("torch", "transformers", "peft", "deepspeed", "vllm")


def describe(num_gpus: int, *, computes: bool = False, ranks: int = 0) -> dict[str, Any]:
    """Describe the cores and the GPUs that the step used; for a step that computes, also what affects rounding.

    Args:
        num_gpus: that the step uses where there are any; a step that has not imported torch has used none.
        computes: whether the step computes with a model.
        ranks: training processes; 0 for none.

    Returns: `num_cores`, `num_gpus` and, above 0 of them, `gpu`, their name. Of a step that computes: `processor` and
        `instructions`, the vector extensions that torch takes; `threads` of this process; `ranks`; and `packages`, the
        versions of those that are imported.
    """
    found: dict[str, Any] = {"num_cores": num_cores(), "num_gpus": 0}
    torch = sys.modules.get("torch")
    if num_gpus and torch is not None and torch.cuda.is_available():
        found |= {"num_gpus": num_gpus, "gpu": torch.cuda.get_device_name()}
    if computes and torch is not None:
        found |= {
            "processor": processor(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            **({"ranks": ranks} if ranks else {}),
            "packages": _versions(),
        }
    return found


def processor(root: Path = Path("/")) -> str:
    """The processor's name, or its architecture where the system does not name it.

    Args:
        root: of the file system, for tests.
    """
    try:
        lines = (root / "proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine()


def _versions() -> dict[str, str]:
    """Versions of the packages that this process has imported, whatever is installed by now."""
    found = ((name, getattr(sys.modules.get(name), "__version__", None)) for name in _PACKAGES)
    return {name: str(version) for name, version in found if version}
