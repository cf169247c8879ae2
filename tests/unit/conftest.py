from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture
def make_random_llama() -> Callable[[], Any]:
    """Makes a two-layer Llama with random weights, the same each time; weights are large, so that tokens matter."""

    def make() -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from support.bounds import few_threads

        few_threads()
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.2,
            attn_implementation="eager",
        )
        torch.manual_seed(0)
        return LlamaForCausalLM(config)

    return make


@pytest.fixture
def in_float64() -> Iterator[None]:
    """Has torch compute in float64; see `bounds.float64`."""
    from support.bounds import float64

    with float64():
        yield
