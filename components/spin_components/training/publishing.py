"""The policy of an epoch as safetensors, written by all ranks as a stream: a file's weights are held at a time.

The ranks take the files in turn. Under ZeRO-3 every rank gathers one group of weights after the other, on the device
that it trains on, and the rank of the file copies it; otherwise each rank reads its own weights. Uploads come after
that, and are no part of any collective.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from spin_components.model.loading import write_companions
from spin_components.model.weight_files import MAX_FILE_BYTES, WeightFiles, weight_of
from spin_components.training.backend import Backend


def write_policy(backend: Backend, like: Path, folder: Path, *, max_bytes: int = MAX_FILE_BYTES) -> None:
    """Write this rank's files of the policy; every rank calls it.

    Args:
        backend: with the policy.
        like: folder that the files beside the weights are copied from, by the first rank.
        folder: of this rank's files; not created where it has none.
        max_bytes: see `MAX_FILE_BYTES`.
    """
    model: Any = getattr(backend.model, "module", backend.model)
    files = WeightFiles(model, max_bytes)
    for number, file in enumerate(files):
        is_own = number % backend.ranks == backend.rank
        held: dict[str, Tensor] = {}
        for group in file.groups:
            weights = {name: weight_of(model, name) for name in group}
            with backend.whole([weight for name, weight in weights.items() if weight.requires_grad]) as is_lent:
                if is_own:
                    whole = {name: weight.detach().cpu() for name, weight in weights.items()}
                    converted = files.convert(whole)
                    held |= {name: tensor.clone() if is_lent else tensor for name, tensor in converted.items()}
        if is_own:
            file.write(folder, held)
    if backend.rank == 0:
        files.write_index(folder)
        write_companions(model, like, folder)
