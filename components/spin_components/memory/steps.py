"""The estimates of all steps of a run that have a model."""

from __future__ import annotations

from spin_components.memory.estimate import Estimate
from spin_components.memory.inference import generating, scoring
from spin_components.memory.shape import ModelShape
from spin_components.memory.training import training
from spin_components.memory.work import Work


def estimate_steps(shape: ModelShape, work: Work) -> list[Estimate]:
    """What a process of each step takes at its peak, in the order of the pipeline."""
    return [
        generating(shape, work),
        scoring(shape, work, "ref-logprob"),
        training(shape, work),
        scoring(shape, work, "validate"),
    ]
