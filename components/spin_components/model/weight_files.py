"""The safetensors files of a model that is written as a stream: which file has which weights, before any is read.

Weights are written one group at a time. A group is what transformers converts together into the names and shapes of
files: mostly one parameter; the query, key and value weights of a layer where files have them in one; and so on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spin_components.errors import ModelError
from spin_components.store.model_files import INDEX, WEIGHTS

MAX_FILE_BYTES = 2**31
"""Size above which no weight is added to a file; a larger group of weights has a file of its own."""

_LAYER = re.compile(r"(.*?\.\d+)\.")
Group = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file.

    Attributes:
        name: of the file.
        groups: names in the model, of what its weights are made of.
        weights: shapes of its tensors by name.
    """

    name: str
    groups: tuple[Group, ...]
    weights: Mapping[str, tuple[int, ...]]

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write the file.

        Raises:
            ModelError: the tensors are not those that were planned.
        """
        from safetensors.torch import save_file

        if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != dict(self.weights):
            raise ModelError(
                f"{self.name}: transformers converts {len(tensors)} weights, as {sorted(tensors)[:3]}, expected the "
                f"{len(self.weights)} that it converts of the whole model, as {sorted(self.weights)[:3]}; report this"
            )
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / self.name, {"format": "pt"})


class WeightFiles:
    """The files of a model, in their order.

    Args:
        model: in Hugging Face layout; of partitioned parameters only shapes are used.
        max_bytes: see `MAX_FILE_BYTES`.
    """

    def __init__(self, model: Any, max_bytes: int = MAX_FILE_BYTES) -> None:
        self._model = model
        shapes = {name: tensor.to("meta") for name, tensor in _described(model)}
        whole = _reverted(model, shapes)
        self._is_plain = all(whole.get(name) is tensor for name, tensor in shapes.items())
        groups = [(name,) for name in shapes] if self._is_plain else _groups(shapes, whole, self.convert)
        files: list[tuple[list[Group], dict[str, Tensor]]] = []
        num_bytes = 0
        for group in groups:
            converted = self.convert({name: shapes[name] for name in group})
            added = sum(tensor.nbytes for tensor in converted.values())
            if not files or num_bytes + added > max_bytes:
                files.append(([], {}))
                num_bytes = 0
            files[-1][0].append(group)
            files[-1][1].update(converted)
            num_bytes += added
        self._total_bytes = sum(tensor.nbytes for _, weights in files for tensor in weights.values())
        self._files = [
            WeightFile(
                WEIGHTS if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors",
                tuple(of_file),
                {name: tuple(tensor.shape) for name, tensor in weights.items()},
            )
            for number, (of_file, weights) in enumerate(files, start=1)
        ]

    def __iter__(self) -> Iterator[WeightFile]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def convert(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert whole groups from the model's names and shapes to those of files."""
        return dict(tensors) if self._is_plain else _reverted(self._model, dict(tensors))

    def write_index(self, folder: Path) -> None:
        """Write the index of several files; nothing for one file."""
        if len(self._files) == 1:
            return
        numel = sum(math.prod(shape) for file in self._files for shape in file.weights.values())
        index = {
            "metadata": {"total_parameters": numel, "total_size": self._total_bytes},
            "weight_map": {name: file.name for file in self._files for name in file.weights},
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def weight_of(model: Any, name: str) -> Tensor:
    """The parameter or buffer of a name; of several names of one parameter, any."""
    module, _, own = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(module), own)
    return tensor


def _described(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Names that are saved, with a tensor of the shape and dtype of each, without memory."""
    ignored = {*(model._keys_to_ignore_on_save or ()), *(getattr(model, "all_tied_weights_keys", None) or {})}
    for name in model.state_dict():
        if name not in ignored:
            tensor = weight_of(model, name)
            yield name, torch.empty(tuple(getattr(tensor, "ds_shape", tensor.shape)), dtype=tensor.dtype, device="meta")


def _reverted(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `save_pretrained` makes of tensors, which need not be all of the model."""
    from transformers.core_model_loading import revert_weight_conversion

    reverted: dict[str, Tensor] = revert_weight_conversion(model, tensors)
    return reverted


def _groups(
    shapes: Mapping[str, Tensor],
    whole: Mapping[str, Tensor],
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
) -> list[Group]:
    """The smallest groups that are converted, each apart, to what the whole model is converted to."""
    expected = {name: tensor.shape for name, tensor in whole.items()}
    for key in (lambda name: name, _module, lambda name: _module(_module(name)), _layer):
        groups: dict[str, list[str]] = {}
        for name in shapes:
            groups.setdefault(key(name), []).append(name)
        with suppress(Exception):  # weights that are converted together are not in one group
            found = [convert({name: shapes[name] for name in group}) for group in groups.values()]
            apart = {name: tensor.shape for converted in found for name, tensor in converted.items()}
            if apart == expected and sum(map(len, found)) == len(expected):
                return [tuple(group) for group in groups.values()]
    return [tuple(shapes)]


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _layer(name: str) -> str:
    match = _LAYER.match(name)
    return match[1] if match else name
