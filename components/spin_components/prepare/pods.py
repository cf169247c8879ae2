"""Resource requests and node placement of each kind of pod, derived from the settings; outputs of `prepare`."""

from __future__ import annotations

from typing import Any

from spin_components.settings.settings import Settings


def pod_requests(
    settings: dict[str, Any],
) -> tuple[str, str, str, str, str, str, str, str, str, str, dict[str, str], list[Any], Any]:
    """Resource requests and placement of the pods, in the order of the outputs of `prepare`'s component.

    Args:
        settings: every section, validated.

    Returns: GPU resource name (empty: none); number of GPUs of a generate, a training and a scoring pod, as digits;
        CPU and memory of each in that order, as Kubernetes quantities; node selector, tolerations, affinity.
    """
    parsed = Settings.model_validate(settings)
    placement = parsed.placement
    num_gpus = parsed.generation.tensor_parallel, parsed.hardware.ranks, 1
    generate, train, score = (str(count if placement.accelerator else 0) for count in num_gpus)
    return (
        placement.accelerator,
        generate,
        train,
        score,
        placement.generate.cpu,
        placement.generate.memory,
        placement.train.cpu,
        placement.train.memory,
        placement.score.cpu,
        placement.score.memory,
        placement.node_selector,
        placement.tolerations,
        placement.affinity,
    )
