"""The memory check of a run: estimates of all steps, with warnings or an error where memory does not suffice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from spin_components.memory.estimate import Estimate
from spin_components.memory.fit import in_gib, refuse, shortages
from spin_components.memory.processes import idle_gpus, in_copies
from spin_components.memory.shape import ModelShape
from spin_components.memory.training import estimate_training
from spin_components.memory.work import Workload
from spin_components.memory.zero_stage import resolve_zero_stage


def estimate_steps(shape: ModelShape, work: Workload) -> list[Estimate]:
    """Estimate the peak memory of each step, in the order of the pipeline."""
    if not shape.packs:
        work = work.padded()
    # one answer a prompt: the human's
    human = replace(work, lengths=replace(work.lengths, generated=0))
    return [
        *([replace(estimate_training(shape, human), step="warm-up")] if work.settings.warm_up.is_on else []),
        in_copies(shape, work, "generate"),
        in_copies(shape, work, "ref-logprob"),
        estimate_training(shape, work),
        in_copies(shape, work, "validate"),
        *([replace(estimate_training(shape, human), step="control")] if work.settings.control.sft else []),
    ]


logger = logging.getLogger(__name__)


def check_memory(shape: ModelShape, work: Workload, warn: Callable[[str], None]) -> list[Estimate]:
    """Estimate every step, and treat shortages as `hardware.memory_check` says.

    Args:
        shape: of the model.
        work: settings, machine and lengths.
        warn: called with the text of each shortage that is not an error.

    Raises:
        ConfigError: a step cannot fit and `hardware.memory_check` is "refuse".
    """
    check = work.settings.hardware.memory_check
    work = resolve_zero_stage(shape, work)
    estimates = estimate_steps(shape, work)
    if check == "off":
        return estimates
    if idle := idle_gpus(estimates, work):
        warn(idle)
    short = shortages(estimates, work)
    if check == "refuse":
        refuse(short)
    for shortage in short:
        warn(str(shortage))
    return estimates


def format_peaks(estimates: Sequence[Estimate]) -> str:
    """Format the peak of every step as one line."""
    parts = [
        f"{each.step} {in_gib(each.device_bytes)} a GPU and {in_gib(each.host_bytes)} beside it"
        if each.device
        else f"{each.step} {in_gib(each.host_bytes)}"
        for each in estimates
    ]
    return "memory at the peak, estimated: " + ", ".join(parts)
