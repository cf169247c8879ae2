"""Resolution of `training.zero_stage = "auto"` to the lowest ZeRO stage that fits, as higher ones need more traffic."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from spin_components.memory.fit import shortages
from spin_components.memory.shape import ModelShape
from spin_components.memory.training import estimate_training
from spin_components.memory.work import Workload
from spin_components.settings.settings import Settings

_STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)


def resolve_zero_stage(shape: ModelShape, work: Workload) -> Workload:
    """Replace a stage of `auto`: by 3 where no stage fits, by 2 where the available memory is not known."""
    settings = work.settings
    if settings.training.zero_stage != "auto":
        return work
    available = work.machine.device_bytes if work.on_gpu else work.machine.host_bytes.get("train-epoch", 0)
    if not available:
        return replace(work, settings=_with_stage(settings, 2))
    for stage in _STAGES[1 if settings.training.offload_optimizer else 0 :]:
        candidate = replace(work, settings=_with_stage(settings, stage))
        computed = candidate if shape.packs else candidate.padded()
        if not shortages([estimate_training(shape, computed)], computed):
            return candidate
    return replace(work, settings=_with_stage(settings, 3))


def _with_stage(settings: Settings, stage: Literal[0, 1, 2, 3]) -> Settings:
    return settings.model_copy(update={"training": settings.training.model_copy(update={"zero_stage": stage})})
