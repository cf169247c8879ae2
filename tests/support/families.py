"""Tiny models of several families, and a direct computation of their log-probabilities."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Qwen2Config,
)

from spin_components.algorithm.logprobs import PromptAnswer
from spin_components.algorithm.packing import PACKED, Prompted, packed_attention
from support import bounds

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # large, so that outputs depend on tokens and positions
}
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2),
    "gpt_neox": GPTNeoXConfig(**SIZES),
    # strong soft-capping and a window shorter than the sequences, so that omitting either changes the results
    "gemma2": Gemma2Config(
        **SIZES,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=1.0,
        final_logit_softcapping=2.0,
        sliding_window=5,
    ),
}
SEQUENCES = [
    PromptAnswer([5, 6, 7, 8, 9, 10, 11], [12]),
    PromptAnswer([20], [21, 22, 23, 24, 25, 26, 2]),
    PromptAnswer([5, 6, 7], [0, 1, 2]),
    PromptAnswer([40, 41], [42, 43, 44, 45, 46, 47, 48, 49, 2]),
    PromptAnswer([63, 62, 61, 60, 59], [58, 57]),
]


LAYOUTS = ("eager", PACKED)


def model_of(family: str, attention: str = "eager") -> Any:
    """In float32, or in float64 within `bounds.float64`; random weights, the same each time."""
    return _model_of(family, attention, torch.get_default_dtype())


@functools.cache
def _model_of(family: str, attention: str, dtype: torch.dtype) -> Any:
    bounds.few_threads()
    AttentionInterface.register(PACKED, packed_attention)
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[family])  # models modify their config
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype)
    model.set_attn_implementation(attention)
    return model.eval()


def groups_of(sequences: Sequence[PromptAnswer]) -> list[Prompted]:
    """One group for each sequence."""
    return [Prompted(sequence.prompt_ids, (sequence.answer_ids,)) for sequence in sequences]


def alone(model: Any, sequence: PromptAnswer) -> Tensor:
    """Log-probability of one answer by definition: the sequence without padding, log-softmax of all logits, summed."""
    prompt_ids, answer_ids = list(sequence.prompt_ids), list(sequence.answer_ids)
    logits = model(input_ids=torch.tensor([prompt_ids + answer_ids]), use_cache=False).logits[0]
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    first = len(prompt_ids) - 1  # the logits of the prompt's last token predict the answer's first
    return torch.stack([logprobs[first + index, token] for index, token in enumerate(answer_ids)]).sum()


def logprob_bound(model: Any, sequences: Sequence[PromptAnswer] = SEQUENCES) -> float:
    """Of the longest answer of all, in nats."""
    return bounds.of_logprob(model, max(len(sequence.answer_ids) for sequence in sequences))


def assert_gradients_close(
    model: Any, found: dict[str, Tensor], expected: dict[str, Tensor], weights: Sequence[float], num_tokens: int
) -> None:
    """Of two ways to compute the gradients of the weighted sum of log-probabilities."""
    atol = bounds.of_gradients(model, expected, weights, num_tokens)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=atol)


def gradients(model: Any, values: Tensor, weights: Sequence[float]) -> dict[str, Tensor]:
    model.zero_grad()
    (values * torch.tensor(weights)).sum().backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
