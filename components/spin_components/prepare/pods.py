"""Resource requests and node placement of each kind of pod, derived from the settings; outputs of `prepare`."""

from __future__ import annotations

from typing import Any

from spin_components.settings.settings import Settings


def pod_requests(
    settings: dict[str, Any],
) -> tuple[str, str, str, str, str, str, str, str, str, str, str, str, dict[str, str], list[Any], Any]:
    """Resource requests and placement of the pods, in the order of the outputs of `prepare`'s component.

    Args:
        settings: every section, validated.

    Returns: GPU resource name (empty: none); number of GPUs of a generate, a training, a scoring, a validation and an
        evaluation pod, as digits; CPU and memory of the first three, as Kubernetes quantities; node selector,
        tolerations, affinity.
    """
    parsed = Settings.model_validate(settings)
    placement = parsed.placement
    generate, train, score, validate, evaluate = (
        str(parsed.num_gpus(step) if placement.accelerator else 0)
        for step in ("generate", "train-epoch", "ref-logprob", "validate", "evaluate")
    )
    return (
        placement.accelerator,
        generate,
        train,
        score,
        validate,
        evaluate,
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
