"""Division of a step without a backward pass among processes.

Each has its own copy of the model. There are as many as `hardware.ranks` and the GPUs of the machine or pod allow, as
fit into its memory, and only where they save more time than their start takes. To score and to validate with a model
that one GPU does not hold, all of them divide its weights, see `hardware.shard_scoring`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from spin_components.errors import ModelError
from spin_components.machine import num_cores
from spin_components.memory.estimate import Estimate, StepName
from spin_components.memory.fit import DOUBTED
from spin_components.memory.inference import estimate_generation, estimate_scoring
from spin_components.memory.machines import this_machine
from spin_components.memory.shape import ModelShape, shape_of_folder
from spin_components.memory.work import Workload, longest_allowed
from spin_components.settings.settings import Settings

logger = logging.getLogger(__name__)

SharedStep = Literal["generate", "ref-logprob", "validate"]

START_S = 20.0
"""Seconds that a process takes to import torch and to load a model; what more processes must save at least."""

_GPU_RATE, _CORE_RATE = 1e14, 2e10
"""Operations a second of a forward pass on a GPU and on a core, roughly."""

_CPU_GAIN = 0.2
"""Share of a step's time that processes save on a CPU, whose cores they divide, since threads of one process wait for
each other; a guess, which decides only how long a step must be before processes are started."""

_SHARE = 0.9
"""Share of the available memory that processes may need together."""


@dataclass(frozen=True, slots=True)
class Division:
    """How a step is divided.

    Attributes:
        processes: number of processes.
        is_sharded: whether they divide the model's weights; else each has all of them.
    """

    processes: int = 1
    is_sharded: bool = False


def is_sharded(shape: ModelShape, work: Workload, step: StepName, most: int) -> bool:
    """Whether the processes of ref-logprob or validate divide the weights, see `hardware.shard_scoring`; of others, no.

    Args:
        shape: of the model.
        work: settings, machine and lengths.
        step: its name.
        most: processes that there can be.
    """
    wanted = work.settings.hardware.shard_scoring
    is_scoring = step in ("ref-logprob", "validate")
    if not is_scoring or most < 2 or wanted == "off" or work.settings.lora.is_quantized:
        return False
    if wanted == "on":
        return True
    limit = work.machine.device_bytes if work.on_gpu else 0
    return bool(limit) and estimate_scoring(shape, work, step).device_bytes > DOUBTED * limit


def in_copies(shape: ModelShape, work: Workload, step: SharedStep) -> Estimate:
    """Estimate a step with as many processes as there can be.

    Args:
        shape: of the model.
        work: settings, machine and lengths.
        step: its name.
    """
    settings = work.settings
    num_gpus = settings.num_gpus(step) if work.machine.is_pod else settings.hardware.ranks
    most = num_gpus // _gpus_of_one(settings, step)
    if is_sharded(shape, work, step, most):
        return estimate_scoring(shape, work, step, most)
    one, num = _fitting(shape, work, step, most)
    return replace(one, processes=one.processes * num) if num > 1 else _of_one(shape, work, step)


def _of_one(shape: ModelShape, work: Workload, step: SharedStep) -> Estimate:
    return estimate_generation(shape, work) if step == "generate" else estimate_scoring(shape, work, step)


def _fitting(shape: ModelShape, work: Workload, step: SharedStep, most: int) -> tuple[Estimate, int]:
    """Estimate of one copy of a step's processes, and the number of copies that fit into the machine or pod."""
    one, most = _of_one(shape, work, step), max(most, 1)
    if most > 1 and one.device and step != "generate":
        # processes load one after the other, so that host memory has the weights once
        libraries = {name: size for name, size in one.host.items() if name == "libraries"}
        rest = {name: size for name, size in one.host.items() if name != "libraries"}
        one = replace(one, host=libraries, first=rest)
    limits = [limit for limit in (work.machine.host_bytes.get(step, 0), work.machine.free_bytes) if limit]
    if not limits:
        return one, most
    available = _SHARE * min(limits) - sum(one.first.values())
    return one, max(1, min(most, int(available / sum(one.host.values()) / one.processes)))


def divide(settings: Settings, folder: Path, step: SharedStep, *, num_tokens: int, num_gpus: int) -> Division:
    """How a step on this machine divides its work among processes.

    Args:
        settings: of the run.
        folder: of the model.
        step: its name.
        num_tokens: that go through the model.
        num_gpus: that torch sees; 0 to compute on the CPU.
    """
    most = min(settings.hardware.ranks, num_gpus) if num_gpus else settings.hardware.ranks
    most //= _gpus_of_one(settings, step)
    if most <= 1:
        return Division()
    try:
        shape = shape_of_folder(folder, what="the model")
    except ModelError as error:  # memory is not known
        if settings.hardware.shard_scoring == "on" and step != "generate":
            return Division(most, is_sharded=True)
        logger.warning("one process computes: %s", error)
        return Division()
    work = Workload(settings, this_machine(settings), longest_allowed(settings))
    if is_sharded(shape, work, step, most):
        logger.info("%d processes divide the weights of the model", most)
        return Division(most, is_sharded=True)
    _, num = _fitting(shape, work, step, most)
    if num < most:
        logger.info("%d of %d processes fit into memory", num, most)
    return Division(num if _saved_s(shape, num_tokens, num, on_gpu=num_gpus > 0) > START_S else 1)


def _gpus_of_one(settings: Settings, step: SharedStep) -> int:
    return settings.generation.tensor_parallel if step == "generate" else 1


def _saved_s(shape: ModelShape, num_tokens: int, num: int, *, on_gpu: bool) -> float:
    """Seconds that `num` processes save against one."""
    alone = 2 * shape.num_active * num_tokens / (_GPU_RATE if on_gpu else _CORE_RATE * num_cores())
    return alone * ((1 - 1 / num) if on_gpu else _CPU_GAIN) if num > 1 else 0.0


def idle_gpus(estimates: Sequence[Estimate], work: Workload) -> str:
    """A warning where processes that do not fit into a pod's memory would leave some of its GPUs idle; or empty."""
    if not (work.on_gpu and work.machine.is_pod):
        return ""
    requested = {each.step: work.settings.num_gpus(each.step) for each in estimates}
    idle = [
        f"{each.step} can use {each.processes} of its {requested[each.step]} GPUs"
        for each in estimates
        if each.step != "train-epoch" and each.processes < requested[each.step]
    ]
    return f"{', '.join(idle)}: more processes do not fit into its memory" if idle else ""
