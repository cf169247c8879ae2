"""What steps will run on, asked of this machine without torch, or taken from what pods are placed by."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Literal

from spin_components.memory.work import Machine
from spin_components.settings import Settings
from spin_components.store.limits import memory_bytes

_FAST_BF16 = ("avx512_bf16", "amx_tile")
_MODEL_STEPS = ("generate", "ref-logprob", "train-epoch", "validate")


def this_machine(settings: Settings) -> Machine:
    """Steps run here: on its GPUs where there are any and `hardware.device` allows them, else in its memory."""
    total, free = memory_bytes()
    host = dict.fromkeys(_MODEL_STEPS, total) if total else {}
    sizes = gpu_sizes() if settings.hardware.device != "cpu" else []
    if not sizes and settings.hardware.device != "cuda":
        return Machine("cpu", _is_bf16(settings, "cpu"), host_bytes=host, free_bytes=free)
    known = int(settings.hardware.gpu_memory_gib * 2**30) or min(sizes, default=0)
    return Machine("cuda", _is_bf16(settings, "cuda"), known, host, free)


def placed_machine(settings: Settings, gpu_bytes: int = 0) -> Machine:
    """Steps run in pods of a cluster, whose memory `[placement]` gives.

    Args:
        settings: of the run.
        gpu_bytes: of one GPU there; 0 if not known. `hardware.gpu_memory_gib` goes before it.
    """
    place = settings.placement
    score = place.score.memory_bytes
    host = {
        "generate": place.generate.memory_bytes,
        "ref-logprob": score,
        "train-epoch": place.train.memory_bytes,
        "validate": score,
    }
    if settings.hardware.device == "cpu" or not place.accelerator:
        return Machine("cpu", settings.training.precision == "bf16", host_bytes=host)
    known = int(settings.hardware.gpu_memory_gib * 2**30) or gpu_bytes
    return Machine("cuda", _is_bf16(settings, "cuda"), known, host)


def gpu_sizes() -> list[int]:
    """Bytes of each NVIDIA GPU here, as its driver's tool tells them; none where there is no such tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [int(line) * 2**20 for line in done.stdout.split() if line.isdigit()]


def _is_bf16(settings: Settings, device: Literal["cuda", "cpu"]) -> bool:
    """What `training.precision` comes to; see `device.resolve_compute`, which asks torch."""
    if settings.training.precision != "auto":
        return settings.training.precision == "bf16"
    return device == "cuda" or multiplies_bf16(Path("/proc/cpuinfo"))


def multiplies_bf16(cpuinfo: Path) -> bool:
    """Whether a processor has bf16 dot products, by the kernel's list of its features."""
    try:
        lines = cpuinfo.read_text("ascii", errors="replace").splitlines()
    except OSError:
        return False
    features = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return any(name in features for name in _FAST_BF16)
