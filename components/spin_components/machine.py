"""What a step had of the machine it ran on, for the record and for its cost."""

from __future__ import annotations

import sys
from typing import Any

from spin_components.store.limits import num_cores


def describe(num_gpus: int) -> dict[str, Any]:
    """Cores, and GPUs where the step used some.

    Args:
        num_gpus: that the step takes if there are any. Whether there are is asked of torch where the step has imported
            it; a step that has not used none.

    Returns: `num_cores`, `num_gpus` and, above 0 of them, `gpu`, their name.
    """
    found: dict[str, Any] = {"num_cores": num_cores(), "num_gpus": 0}
    torch = sys.modules.get("torch")
    if num_gpus and torch is not None and torch.cuda.is_available():
        found |= {"num_gpus": num_gpus, "gpu": torch.cuda.get_device_name()}
    return found
