"""Machines that steps run on: this one, queried without torch, or a cluster's pods, from the settings."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Literal

from spin_components.machine import memory_bytes
from spin_components.memory.estimate import TRAINING
from spin_components.memory.work import Machine
from spin_components.settings.settings import Settings

_FAST_BF16 = ("avx512_bf16", "amx_tile")
_MODEL_STEPS: tuple[str, ...] = ("generate", "ref-logprob", *TRAINING, "validate")


def this_machine(settings: Settings) -> Machine:
    """This machine: its GPUs if it has any and `hardware.device` allows them, else its CPU."""
    total, free = memory_bytes()
    host: dict[str, int] = dict.fromkeys(_MODEL_STEPS, total) if total else {}
    sizes = gpu_sizes() if settings.hardware.device != "cpu" else []
    if not sizes and settings.hardware.device != "cuda":
        return Machine("cpu", _is_bf16(settings, "cpu"), host_bytes=host, free_bytes=free)
    device_bytes = int(settings.hardware.gpu_memory_gib * 2**30) or min(sizes, default=0)
    return Machine("cuda", _is_bf16(settings, "cuda"), device_bytes, host, free)


def pod_machine(settings: Settings, gpu_bytes: int = 0) -> Machine:
    """A cluster's pods, with the memory that `[placement]` requests for them.

    Args:
        settings: of the run.
        gpu_bytes: memory of one GPU of the cluster; 0 if not known. `hardware.gpu_memory_gib` overrides it.
    """
    placement = settings.placement
    score = placement.score.memory_bytes
    host: dict[str, int] = {
        "generate": placement.generate.memory_bytes,
        "ref-logprob": score,
        **dict.fromkeys(TRAINING, placement.train.memory_bytes),
        "validate": score,
    }
    if settings.hardware.device == "cpu" or not placement.accelerator:
        return Machine("cpu", settings.training.precision == "bf16", host_bytes=host, is_pod=True)
    device_bytes = int(settings.hardware.gpu_memory_gib * 2**30) or gpu_bytes
    return Machine("cuda", _is_bf16(settings, "cuda"), device_bytes, host, is_pod=True)


def gpu_sizes() -> list[int]:
    """Memory of each NVIDIA GPU of this machine in bytes, from nvidia-smi; empty without it or if it fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [int(line) * 2**20 for line in result.stdout.split() if line.isdigit()]


def _is_bf16(settings: Settings, device: Literal["cuda", "cpu"]) -> bool:
    """Whether `training.precision` resolves to bf16; as `model.compute.resolve_compute`, but without torch."""
    if settings.training.precision != "auto":
        return settings.training.precision == "bf16"
    return device == "cuda" or has_bf16_products(Path("/proc/cpuinfo"))


def has_bf16_products(cpuinfo: Path) -> bool:
    """Whether the CPU has bf16 dot products, by the feature flags in `/proc/cpuinfo`."""
    try:
        lines = cpuinfo.read_text("ascii", errors="replace").splitlines()
    except OSError:
        return False
    features = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return any(name in features for name in _FAST_BF16)
