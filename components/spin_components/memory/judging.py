"""The estimates of a run against what there is: told in a line, doubted in warnings, refused where they cannot fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from spin_components.memory.estimate import Estimate
from spin_components.memory.fit import in_gib, refuse, shortages
from spin_components.memory.shape import ModelShape
from spin_components.memory.staging import staged
from spin_components.memory.steps import estimate_steps
from spin_components.memory.work import Work

logger = logging.getLogger(__name__)


def judge(shape: ModelShape, work: Work, warn: Callable[[str], None]) -> list[Estimate]:
    """Estimate every step, and do about shortages what `hardware.memory_check` says.

    Raises:
        ConfigError: a step clearly cannot fit, and that is to be refused.
    """
    check = work.settings.hardware.memory_check
    work = staged(shape, work)
    estimates = estimate_steps(shape, work)
    if check == "off":
        return estimates
    found = shortages(estimates, work)
    if check == "refuse":
        refuse(found)
    for shortage in found:
        warn(str(shortage))
    return estimates


def told(estimates: Sequence[Estimate]) -> str:
    """Every step's peak, in a line."""
    parts = [
        f"{each.step} {in_gib(each.device_bytes)} a GPU and {in_gib(each.host_bytes)} beside it"
        if each.device
        else f"{each.step} {in_gib(each.host_bytes)}"
        for each in estimates
    ]
    return "memory at the peak, estimated: " + ", ".join(parts)
