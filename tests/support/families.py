"""Tiny models of several families, and a direct computation of their log-probabilities."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    Gemma4Config,
    Gemma4TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    OPTConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
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
_IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_EXPERTS: dict[str, Any] = {"num_key_value_heads": 2, "num_experts_per_tok": 2}
_MIXED: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 30}
_GEMMA: dict[str, Any] = {**SIZES, **_MIXED, **_IDS, "num_key_value_heads": 2, "head_dim": 8}
_PER_LAYER: dict[str, Any] = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64}
_GEMMA4: dict[str, Any] = {**_GEMMA, **_PER_LAYER, "global_head_dim": 8, "num_kv_shared_layers": 0}
_SHARED: dict[str, Any] = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
_LINEAR: dict[str, Any] = {
    "num_key_value_heads": 2,
    "head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
# windows of 30 tokens: longer than the probe's sequences, shorter than those of the tests
OTHERS: dict[str, Any] = {
    "gemma3": Gemma3Config(
        text_config={**_GEMMA, "query_pre_attn_scalar": 8},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
        boi_token_index=6,
        eoi_token_index=7,
        image_token_index=8,
    ),
    "gemma3_text": Gemma3TextConfig(**_GEMMA, query_pre_attn_scalar=8),
    "gemma3n_text": Gemma3nTextConfig(
        **{**_GEMMA, **_PER_LAYER, "intermediate_size": [64, 64]},
        num_kv_shared_layers=0,
        laurel_rank=4,
        altup_num_inputs=2,
        activation_sparsity_pattern=[0.0, 0.0],
    ),
    "gemma4": Gemma4Config(
        text_config=_GEMMA4,
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "patch_size": 4,
            "position_embedding_size": 16,
        },
        image_token_id=8,
        video_token_id=9,
        audio_token_id=10,
    ),
    "gemma4_text": Gemma4TextConfig(**_GEMMA4),
    "gemma4_moe": Gemma4TextConfig(
        **_GEMMA4, enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=32
    ),
    "gpt2": GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2, resid_pdrop=0.1, **_IDS
    ),
    "gpt_oss": GptOssConfig(**SIZES, **_EXPERTS, **_MIXED, head_dim=8, num_local_experts=4),
    "llama4_text": Llama4TextConfig(
        **SIZES,
        **_EXPERTS,
        **_IDS,
        head_dim=8,
        intermediate_size_mlp=64,
        num_local_experts=2,
        attention_chunk_size=30,
    ),
    "mamba": MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, **_IDS),
    "mamba2": Mamba2Config(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=4,
        num_heads=8,
        head_dim=8,
        n_groups=2,
        chunk_size=8,
        **_IDS,
    ),
    "mistral": MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=30),
    "mixtral": MixtralConfig(
        **SIZES, **_EXPERTS, num_local_experts=4, output_router_logits=True, router_jitter_noise=0.3
    ),
    "olmoe": OlmoeConfig(**SIZES, **_EXPERTS, num_experts=4),
    "opt": OPTConfig(
        vocab_size=64,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
        init_std=0.2,
        layerdrop=0.5,
    ),
    "qwen2_moe": Qwen2MoeConfig(
        **SIZES, **_EXPERTS, **_SHARED, num_experts=4, use_sliding_window=True, sliding_window=30, max_window_layers=2
    ),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8),
    "qwen3_5_moe_text": Qwen3_5MoeTextConfig(
        **{**SIZES, **_LINEAR, **_SHARED}, num_experts=4, num_experts_per_tok=2, output_router_logits=True
    ),
    "qwen3_5_text": Qwen3_5TextConfig(**SIZES, **_LINEAR),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **_EXPERTS, head_dim=8, num_experts=4, moe_intermediate_size=32),
    "qwen3_next": Qwen3NextConfig(
        **SIZES,
        **_EXPERTS,
        **_SHARED,
        head_dim=8,
        num_experts=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        layer_types=["linear_attention", "full_attention"],
    ),
}
"""Families whose gradients are not tested one by one."""
_VISION: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "depth": 1,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
    },
    "image_token_id": 8,
    "video_token_id": 9,
    "vision_start_token_id": 10,
    "vision_end_token_id": 11,
}
WRAPPERS: dict[str, tuple[Any, Any]] = {
    "qwen3_5": (
        Qwen3_5ForConditionalGeneration,
        Qwen3_5Config(text_config=OTHERS["qwen3_5_text"].to_dict(), **_VISION),
    ),
    "qwen3_5_moe": (
        Qwen3_5MoeForConditionalGeneration,
        Qwen3_5MoeConfig(text_config=OTHERS["qwen3_5_moe_text"].to_dict(), **_VISION),
    ),
}
"""Models of images and text, as they are published, of which transformers' causal language model is a part."""
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


def save_family(family: str, folder: Path, tokenizer: Path | None = None) -> None:
    """Write a model of one family with random weights, the same each time.

    Args:
        family: key of `CONFIGS`, `OTHERS` or `WRAPPERS`.
        folder: to be filled.
        tokenizer: folder whose tokenizer the model shall fit and take along.
    """
    bounds.few_threads()
    kind, config = WRAPPERS.get(family) or (None, {**CONFIGS, **OTHERS}[family])
    config = copy.deepcopy(config)
    if tokenizer is not None:
        for each in (config, config.get_text_config()):
            each.eos_token_id = 2  # the tokenizer's
            for name, value in list(vars(each).items()):
                if name.startswith("vocab_size"):
                    setattr(each, name, json.loads((tokenizer / "config.json").read_bytes())["vocab_size"])
                elif name in ("n_positions", "max_position_embeddings"):
                    setattr(each, name, max(value, 256))
        for path in (*tokenizer.glob("tokenizer*"), *tokenizer.glob("*.jinja")):
            folder.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / path.name)
    torch.manual_seed(0)
    model = kind(config) if kind else AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)


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
