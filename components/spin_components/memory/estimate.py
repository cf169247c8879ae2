"""Estimates of a step's peak memory, in bytes by purpose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

StepName = Literal["warm-up", "generate", "ref-logprob", "train-epoch", "validate", "control"]
TRAINING: tuple[StepName, ...] = ("train-epoch", "warm-up", "control")
"""Steps that train."""
Parts = dict[str, int]

GIB = 2**30
HOST_BASE = 0.56 * GIB
"""Host memory of a process that has imported torch and transformers, without CUDA; measured by
tests/benchmarks/memory.py."""

CUDA_BASE = 1.0 * GIB
"""GPU memory of CUDA's context, the libraries' workspaces and NCCL's buffers; a typical value, not measured here."""

CUDA_HOST_BASE = 3.0 * GIB
"""Host memory of a process with a CUDA context; a typical value, not measured here."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Peak memory of one process of a step.

    Attributes:
        step: name of the step.
        device: bytes of GPU memory by purpose; empty on a CPU.
        host: bytes of host memory by purpose.
        processes: number of processes of the step that share one machine or pod.
        first: further bytes of host memory that only the first process uses, by purpose.
    """

    step: StepName
    device: Mapping[str, int]
    host: Mapping[str, int]
    processes: int = 1
    first: Mapping[str, int] = field(default_factory=dict)

    @property
    def device_bytes(self) -> int:
        """Bytes on one GPU."""
        return sum(self.device.values())

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory of all processes on one machine."""
        return self.processes * sum(self.host.values()) + sum(self.first.values())

    @property
    def host_parts(self) -> Parts:
        """`host_bytes` by purpose."""
        shared = {name: self.processes * size for name, size in self.host.items()}
        return {**shared, **{name: shared.get(name, 0) + size for name, size in self.first.items()}}


def largest_phase(phases: Iterable[Mapping[str, float]]) -> Parts:
    """Parts of the phase with the largest sum, in whole bytes."""
    return whole_bytes(max(phases, key=lambda parts: sum(parts.values())))


def whole_bytes(parts: Mapping[str, float]) -> Parts:
    """Parts rounded down to whole bytes, without those of less than one byte."""
    return {name: int(size) for name, size in parts.items() if size >= 1}
