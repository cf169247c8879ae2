"""What a step computes on: device, precision, threads."""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from spin_components.attempt_settings import HardwareSettings
from spin_components.errors import ConfigError
from spin_components.store.limits import num_cores

Precision = Literal["float32", "bf16"]


@dataclass(frozen=True, slots=True)
class Compute:
    """Device and compute precision; weights are float32 in either."""

    device: torch.device
    precision: Precision

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision for forward passes: float32 weights and residual stream, bf16 matrix products."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def resolve_compute(hardware: HardwareSettings, precision: str, *, local_rank: int = 0) -> Compute:
    """Turn `auto` into what this machine has.

    Raises:
        ConfigError: a GPU is asked for and none is there.
    """
    if hardware.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("hardware.device = 'cuda', but torch sees no GPU here; use 'auto' or 'cpu'")
    on_gpu = hardware.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    return Compute(device, _resolve_precision(precision, device))


def _resolve_precision(precision: str, device: torch.device) -> Precision:
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_multiplies_bf16()
        return "bf16" if fast else "float32"
    return "bf16" if precision == "bf16" else "float32"


def _cpu_multiplies_bf16() -> bool:
    """Whether the processor has bf16 dot products (AVX-512 BF16 or AMX); without them bf16 is many times slower."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def set_threads(hardware: HardwareSettings, *, processes: int = 1) -> int:
    """Give this process its share of the cores; returns how many threads that is."""
    threads = hardware.threads or max(1, num_cores() // processes)
    torch.set_num_threads(threads)
    keep_memory()
    return threads


def keep_memory() -> None:
    """Have glibc keep what torch frees on a CPU, for the next tensor.

    It would map every large tensor anew and give it back, so that each pass has the kernel clear the same pages again:
    a sixth of a training step of SmolLM2 (tests/benchmarks/training.py). Nothing happens on another C library.
    """
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD in malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
