"""Resource requests and node placement of each kind of pod, derived from the settings; an output of `prepare`."""

from __future__ import annotations

from typing import Any

from spin_components.settings.settings import Settings

_STEPS = {
    "generate": "generate",
    "train": "train-epoch",
    "score": "ref-logprob",
    "validate": "validate",
    "evaluate": "evaluate",
}


def pod_requests(settings: dict[str, Any]) -> dict[str, Any]:
    """Resource requests and placement of the pods of a run.

    Args:
        settings: every section, validated.

    Returns: `gpu_type`, a GPU's resource name (empty: none); `generate_gpus`, `train_gpus`, `score_gpus`,
        `validate_gpus` and `evaluate_gpus`, the number of GPUs of a pod, as digits; `generate_cpu`, `generate_memory`
        and so on for `train` and `score`, as Kubernetes quantities; `node_selector`, `tolerations`, `affinity`.
    """
    parsed = Settings.model_validate(settings)
    placement = parsed.placement
    has_gpus = bool(placement.accelerator)
    resources = {"generate": placement.generate, "train": placement.train, "score": placement.score}
    return {
        "gpu_type": placement.accelerator,
        **{f"{kind}_gpus": str(parsed.num_gpus(step) if has_gpus else 0) for kind, step in _STEPS.items()},
        **{f"{kind}_cpu": each.cpu for kind, each in resources.items()},
        **{f"{kind}_memory": each.memory for kind, each in resources.items()},
        "node_selector": placement.node_selector,
        "tolerations": placement.tolerations,
        "affinity": placement.affinity,
    }
