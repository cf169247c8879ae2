"""Device, precision and threads of a step."""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from spin_components.errors import ConfigError
from spin_components.machine import num_cores
from spin_components.settings.attempt import HardwareSettings

Precision = Literal["float32", "bf16"]


@dataclass(frozen=True, slots=True)
class Compute:
    """Device and compute precision; weights are float32 in both precisions."""

    device: torch.device
    precision: Precision

    def autocast(self) -> AbstractContextManager[object]:
        """Context for forward passes: under bf16, autocast with float32 weights and residual stream; else no-op."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def resolve_compute(hardware: HardwareSettings, precision: str, *, local_rank: int = 0) -> Compute:
    """Resolve `auto` for device and precision on this machine.

    Args:
        hardware: settings.
        precision: `training.precision`: auto, float32 or bf16.
        local_rank: index of the GPU to use.

    Raises:
        ConfigError: `hardware.device` is `cuda` and torch sees no GPU.
    """
    if hardware.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("hardware.device = 'cuda', but torch sees no GPU here; use 'auto' or 'cpu'")
    on_gpu = hardware.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    return Compute(device, _resolve_precision(precision, device))


def _resolve_precision(precision: str, device: torch.device) -> Precision:
    if precision == "auto":
        is_fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bf16_products()
        return "bf16" if is_fast else "float32"
    return "bf16" if precision == "bf16" else "float32"


def _cpu_has_bf16_products() -> bool:
    """Whether the CPU has bf16 dot products (AVX-512 BF16 or AMX); without them bf16 is many times slower."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def num_visible_gpus(compute: Compute) -> int:
    """GPUs that this process may use; 0 where it computes on the CPU."""
    return torch.cuda.device_count() if compute.device.type == "cuda" else 0


def set_threads(hardware: HardwareSettings, *, processes: int = 1) -> int:
    """Set torch's threads to `hardware.threads`, or to this process's share of the cores; returns their number."""
    threads = hardware.threads or max(1, num_cores() // processes)
    torch.set_num_threads(threads)
    retain_freed_memory()
    return threads


def retain_freed_memory() -> None:
    """Make glibc reuse the memory of freed tensors on a CPU instead of returning it to the kernel.

    By default glibc maps and unmaps every large tensor, and the kernel zeroes the pages again in each pass: a sixth of
    a training step of SmolLM2 (tests/benchmarks/training.py). Without effect on other C libraries.
    """
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
