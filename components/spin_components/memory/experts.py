"""Mixtures of experts: how many there are, how many a token goes through, and their widths, from a `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MATRICES = 3
"""Of one expert: gate, up and down."""


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of a model.

    Attributes:
        number: routed experts of one layer, E.
        active: how many of them a token goes through, k.
        inner: width of one routed expert.
        shared: width of the experts of a layer that every token goes through, together; 0 without such.
        num_layers: layers that have experts; the others have one MLP.
    """

    number: int
    active: int
    inner: int
    shared: int
    num_layers: int

    @property
    def inner_of_token(self) -> int:
        """Width of all the experts together that one token goes through in a layer."""
        return self.active * self.inner + self.shared

    def num_routed(self, hidden: int) -> int:
        """Parameters of all routed experts."""
        return self.num_layers * self.number * _MATRICES * hidden * self.inner

    def num_parameters(self, hidden: int) -> int:
        """Parameters of all experts and routers."""
        return self.num_routed(hidden) + self.num_layers * hidden * (_MATRICES * self.shared + self.number)

    def num_idle(self, hidden: int) -> int:
        """Parameters of the routed experts that a token does not go through."""
        return self.num_layers * (self.number - self.active) * _MATRICES * hidden * self.inner


def experts_of(config: Mapping[str, Any], num_layers: int, inner: int) -> Experts | None:
    """Derive a model's experts from its configuration; None if it has none.

    Args:
        config: of the language model, parsed.
        num_layers: of the model.
        inner: width of an MLP without experts, which is that of an expert too unless one is given.
    """
    number = _number(config, "num_local_experts", "num_experts", "n_routed_experts")
    active = _number(config, "num_experts_per_tok", "experts_per_token", "top_k_experts", "num_experts_per_token")
    layers = _layers_with_experts(config, num_layers)
    if number < 2 or not active or not layers or config.get("enable_moe_block") is False:
        return None
    width = _number(config, "moe_intermediate_size") or inner
    shared = _number(config, "shared_expert_intermediate_size", "shared_intermediate_size")
    if config.get("enable_moe_block") or str(config.get("model_type")).startswith("llama4"):
        shared = inner  # Gemma 4 has its MLP beside the experts, Llama 4 one shared expert
    shared = shared or _number(config, "n_shared_experts") * width
    return Experts(number, min(active, number), width, shared, layers)


def _layers_with_experts(config: Mapping[str, Any], num_layers: int) -> int:
    """How many layers have experts, by the keys that Qwen, DeepSeek and Llama 4 name them with."""
    named = config.get("moe_layers")
    if isinstance(named, list):
        return len(named)
    step = _number(config, "decoder_sparse_step", "interleave_moe_layer_step") or 1
    first = _number(config, "first_k_dense_replace")
    without = config.get("mlp_only_layers")
    left_out = without if isinstance(without, list) else []
    return sum(i >= first and (i + 1) % step == 0 and i not in left_out for i in range(num_layers))


def _number(config: Mapping[str, Any], *aliases: str) -> int:
    """The first of several keys that holds a number above 0; 0 if none does."""
    return next((value for alias in aliases if type(value := config.get(alias)) is int and value > 0), 0)
