"""Estimates of all steps that load a model."""

from __future__ import annotations

from spin_components.memory.estimate import Estimate
from spin_components.memory.inference import estimate_generation, estimate_scoring
from spin_components.memory.shape import ModelShape
from spin_components.memory.training import estimate_training
from spin_components.memory.work import Workload


def estimate_steps(shape: ModelShape, work: Workload) -> list[Estimate]:
    """Estimate the peak memory of each step, in the order of the pipeline."""
    return [
        estimate_generation(shape, work),
        estimate_scoring(shape, work, "ref-logprob"),
        estimate_training(shape, work),
        estimate_scoring(shape, work, "validate"),
    ]
