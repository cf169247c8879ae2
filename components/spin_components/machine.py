"""The machine that a step ran on, for its manifest: cores, GPUs, and what its rounding depends on."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

from spin_components.store.limits import num_cores

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
