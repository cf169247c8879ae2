"""Optimizers, and their state in files that any backend and any number of ranks can load."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spin_components.settings.training import TrainingSettings

STATE_KEYS = {"adamw": ("exp_avg", "exp_avg_sq"), "rmsprop": ("square_avg",)}
"""Per-parameter tensors of each optimizer's state, by torch's names."""

_MAX_SHARD_BYTES = 2**29


def build_optimizer(settings: TrainingSettings, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Torch's AdamW or RMSProp; the learning rate is set before every step."""
    if settings.optimizer == "rmsprop":
        return torch.optim.RMSprop(
            parameters, lr=0.0, alpha=settings.rmsprop_alpha, eps=settings.eps, weight_decay=settings.weight_decay
        )
    return torch.optim.AdamW(
        parameters,
        lr=0.0,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,  # one pass over the weights: five times as fast on a CPU
    )


class StateWriter:
    """Writes named tensors as float32 to numbered safetensors files, holding at most one file in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._held, self._num_bytes, self._num_files = folder, dict[str, Tensor](), 0, 0
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, tensor: Tensor) -> None:
        self._held[name] = tensor.detach().float().cpu().clone().contiguous()
        self._num_bytes += self._held[name].nbytes
        if self._num_bytes >= _MAX_SHARD_BYTES:
            self.close()

    def close(self) -> None:
        """Write the tensors that are held."""
        if self._held:
            save_file(self._held, self._folder / f"optimizer-{self._num_files:05d}.safetensors")
            self._num_files += 1
            self._held, self._num_bytes = {}, 0


def read_state(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield every named tensor that a `StateWriter` wrote, with one file in memory at a time."""
    for path in sorted(folder.glob("optimizer-*.safetensors")):
        yield from load_file(path).items()
