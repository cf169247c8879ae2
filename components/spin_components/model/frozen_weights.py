"""Frozen weights while they are loaded: linear layers in bf16, and matrices divided among ranks.

`transformers` sets one parameter after the other. Each is cast, and cut down to this rank's part, before the next is
read, so that a rank never holds the whole model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import register_module_parameter_registration_hook

_LOADED = "_is_hf_initialized"
"""Attribute by which transformers distinguishes a parameter that is loaded from one that it must initialize."""

_TAKEN = "spin_frozen"
"""Attribute of parameters that were taken over; a tied one is set in a second module."""

_ONE_BY_ONE = "HF_DEACTIVATE_ASYNC_LOAD"
"""Environment variable with which transformers reads a weight when it sets it, and not all of them ahead in threads."""


class HalfLinear(nn.Linear):
    """A linear layer whose frozen weights are bf16, which is what autocast makes of them at every use.

    Under autocast its output has the bits of float32 weights. Outside, it computes in its input's dtype.
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_autocast_enabled(input.device.type):
            return functional.linear(input, self.weight, self.bias)
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return functional.linear(input, self.weight.to(input.dtype), bias)


@dataclass(frozen=True, slots=True)
class Part:
    """One rank's part of a parameter that is divided among ranks.

    Attributes:
        numbers: of the flattened parameter, filled up with zeros to the same size on every rank.
        shape: of the whole parameter.
    """

    numbers: Tensor
    shape: torch.Size


class FrozenWeights:
    """Frozen parameters of a model that is being loaded.

    Args:
        device: where a rank's parts are kept.
        is_bf16: whether the weights of linear layers become bf16.
        rank: of `ranks`.
        ranks: that divide the parameters of two and more dimensions; 1 to divide none. The others are whole on each.
    """

    def __init__(self, device: torch.device, *, is_bf16: bool, rank: int = 0, ranks: int = 1) -> None:
        self._device, self._is_bf16, self._rank, self.ranks = device, is_bf16, rank, ranks
        self._kept_vocabulary = 0
        self.parts: dict[int, Part] = {}
        """By `id` of the empty parameter on the "meta" device that stands for it, which the model holds."""

    @contextmanager
    def loading(self, config: Any) -> Iterator[None]:
        """Take over each parameter that a module is given in this context; those without contents stay as they are.

        Args:
            config: of the model. Where output layer and embedding are one tensor, that stays float32, since the
                embedding reads it without autocast.
        """
        text = config.get_text_config()
        is_tied = bool(getattr(text, "tie_word_embeddings", True) or getattr(config, "tie_word_embeddings", False))
        self._kept_vocabulary = text.vocab_size if is_tied else 0
        before = os.environ.get(_ONE_BY_ONE)
        if self.ranks > 1:
            os.environ[_ONE_BY_ONE] = "1"
        handle = register_module_parameter_registration_hook(self._take)
        try:
            yield
        finally:
            handle.remove()
            if self.ranks > 1 and before is None:
                del os.environ[_ONE_BY_ONE]

    def _take(self, module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        """The parameter to register in place of another; None to register that one."""
        if parameter is None or parameter.is_meta or hasattr(parameter, _TAKEN) or not parameter.is_floating_point():
            return None
        contents = parameter.detach()
        if self._is_bf16 and self._is_cast(module):
            contents = contents.to(torch.bfloat16)
            module.__class__ = HalfLinear
        if self.ranks == 1 or contents.ndim < 2:
            return _marked(nn.Parameter(contents.to(self._device), requires_grad=False))
        flat = contents.reshape(-1)
        size = -(-len(flat) // self.ranks)
        mine = flat[self._rank * size : (self._rank + 1) * size]
        part = torch.zeros(size, dtype=flat.dtype, device=self._device)
        part[: len(mine)] = mine
        stand_in = nn.Parameter(torch.empty(contents.shape, dtype=flat.dtype, device="meta"), requires_grad=False)
        self.parts[id(stand_in)] = Part(part, contents.shape)
        return _marked(stand_in)

    def _is_cast(self, module: nn.Module) -> bool:
        is_linear = type(module) in (nn.Linear, HalfLinear)
        return is_linear and getattr(module, "out_features", 0) != self._kept_vocabulary


def _marked(parameter: nn.Parameter) -> nn.Parameter:
    for name in (_LOADED, _TAKEN):
        setattr(parameter, name, True)
    return parameter
