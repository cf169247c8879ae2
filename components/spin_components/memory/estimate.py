"""What an estimate is: bytes by what they are for, of the phase of a step that takes the most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

StepName = Literal["generate", "ref-logprob", "train-epoch", "validate"]
Parts = dict[str, int]

GIB = 2**30
HOST_BASE = 0.56 * GIB
"""A process that has imported torch and transformers, on a CPU; measured by tests/benchmarks/memory.py."""

CUDA_BASE = 1.0 * GIB
"""CUDA's context, its libraries' workspaces and NCCL's buffers on a GPU; a usual figure, not measured here."""

CUDA_HOST_BASE = 3.0 * GIB
"""A process that has a CUDA context, in the machine's memory; likewise."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one process of a step takes at its peak.

    Attributes:
        step: its name.
        device: bytes of GPU memory by what they are for; empty on a CPU.
        host: bytes of the machine's memory, likewise.
        processes: of the step that share one machine or pod.
    """

    step: StepName
    device: Mapping[str, int]
    host: Mapping[str, int]
    processes: int = 1

    @property
    def device_bytes(self) -> int:
        """Of one GPU."""
        return sum(self.device.values())

    @property
    def host_bytes(self) -> int:
        """Of all processes that share a machine."""
        return self.processes * sum(self.host.values())


def largest(phases: Iterable[Mapping[str, float]]) -> Parts:
    """The phase that takes the most, without what takes nothing."""
    most = max(phases, key=lambda parts: sum(parts.values()))
    return {name: int(size) for name, size in most.items() if size >= 1}
