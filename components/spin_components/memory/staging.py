"""`zero_stage = "auto"`: the lowest stage of ZeRO whose estimated memory fits: each next one costs traffic."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from spin_components.memory.fit import shortages
from spin_components.memory.shape import ModelShape
from spin_components.memory.training import training
from spin_components.memory.work import Work
from spin_components.settings import Settings

_STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)


def staged(shape: ModelShape, work: Work) -> Work:
    """The work with a stage in the place of `auto`: 3 where none fits, 2 where it is not known how much there is."""
    settings = work.settings
    if settings.training.zero_stage != "auto":
        return work
    known = work.machine.device_bytes if work.on_gpu else work.machine.host_bytes.get("train-epoch", 0)
    if not known:
        return replace(work, settings=_with_stage(settings, 2))
    for stage in _STAGES[1 if settings.training.offload_optimizer else 0 :]:
        found = replace(work, settings=_with_stage(settings, stage))
        if not shortages([training(shape, found)], found):
            return found
    return replace(work, settings=_with_stage(settings, 3))


def _with_stage(settings: Settings, stage: Literal[0, 1, 2, 3]) -> Settings:
    return settings.model_copy(update={"training": settings.training.model_copy(update={"zero_stage": stage})})
