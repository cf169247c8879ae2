"""What each kind of step asks of a cluster's nodes, worked out from the settings: outputs of `prepare`."""

from __future__ import annotations

from typing import Any

from spin_components.settings import Settings


def placed(
    settings: dict[str, Any],
) -> tuple[str, str, str, str, str, str, str, str, str, str, dict[str, str], list[Any], Any]:
    """The values that KFP takes for a pod, in the order of the outputs of `prepare`'s component.

    Args:
        settings: every section, checked.

    Returns: GPU resource name (empty: none); GPUs of generate, of a training pod and of a scoring one, as digits; CPU
        and memory of each in that order, as Kubernetes quantities; node selector, tolerations, affinity.
    """
    known = Settings.model_validate(settings)
    place = known.placement
    counts = known.generation.tensor_parallel, known.hardware.ranks, 1
    generate, train, score = (str(count if place.accelerator else 0) for count in counts)
    return (
        place.accelerator,
        generate,
        train,
        score,
        place.generate.cpu,
        place.generate.memory,
        place.train.cpu,
        place.train.memory,
        place.score.cpu,
        place.score.memory,
        place.node_selector,
        place.tolerations,
        place.affinity,
    )
