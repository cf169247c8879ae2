"""What a step had of the machine it ran on, for the record, for its cost, and for whoever runs it again."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

from spin_components.store.limits import num_cores

_PACKAGES = ("torch", "transformers", "peft", "deepspeed", "vllm")


def describe(num_gpus: int, *, computes: bool = False, ranks: int = 0) -> dict[str, Any]:
    """Cores, and GPUs where the step used some; of a step that computes, also what its rounding depends on.

    Args:
        num_gpus: that the step takes if there are any. Whether there are is asked of torch where the step has imported
            it; a step that has not used none.
        computes: whether the step works with a model.
        ranks: training processes, where the step has some.

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
    """The processor's name, or its architecture where the system does not tell.

    Args:
        root: of the file system; tests lay out another.
    """
    try:
        lines = (root / "proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine()


def _versions() -> dict[str, str]:
    """Of the packages that this process has imported: those it worked with, whatever is installed by now."""
    found = ((name, getattr(sys.modules.get(name), "__version__", None)) for name in _PACKAGES)
    return {name: str(version) for name, version in found if version}
