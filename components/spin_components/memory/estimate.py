"""What an estimate is: bytes by what they are for, of the phase of a step that takes the most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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
        first: bytes of the machine's memory that only the first of them takes, beside `host`.
    """

    step: StepName
    device: Mapping[str, int]
    host: Mapping[str, int]
    processes: int = 1
    first: Mapping[str, int] = field(default_factory=dict)

    @property
    def device_bytes(self) -> int:
        """Of one GPU."""
        return sum(self.device.values())

    @property
    def host_bytes(self) -> int:
        """Of all processes that share a machine."""
        return self.processes * sum(self.host.values()) + sum(self.first.values())

    @property
    def host_parts(self) -> Parts:
        """The same by what it is for."""
        shared = {name: self.processes * size for name, size in self.host.items()}
        return {**shared, **{name: shared.get(name, 0) + size for name, size in self.first.items()}}


def largest(phases: Iterable[Mapping[str, float]]) -> Parts:
    """The phase that takes the most, without what takes nothing."""
    return whole(max(phases, key=lambda parts: sum(parts.values())))


def whole(parts: Mapping[str, float]) -> Parts:
    """Parts in whole bytes, without what takes nothing."""
    return {name: int(size) for name, size in parts.items() if size >= 1}
