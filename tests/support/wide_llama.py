"""A Llama with weights above DeepSpeed's persistence threshold, which ZeRO-3 gathers for every pass."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

PERSISTENT = 100_000
"""DeepSpeed's stage3_param_persistence_threshold: smaller parameters stay whole on every rank."""


def make_wide_llama(folder: Path, tiny_llama: Path, *, is_tied: bool) -> Path:
    """Write one whose embedding and MLP are above the threshold; returns the folder.

    Args:
        folder: to be created.
        tiny_llama: gives the tokenizer.
        is_tied: whether the output layer has the embedding's weight.
    """
    shutil.copytree(tiny_llama, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    sizes = {"hidden_size": 200, "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = json.loads((folder / "config.json").read_bytes()) | sizes
    config |= {"head_dim": 100, "initializer_range": 0.05, "tie_word_embeddings": is_tied}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**config))
    assert model.model.embed_tokens.weight.numel() > PERSISTENT
    assert model.model.layers[0].mlp.gate_proj.weight.numel() > PERSISTENT
    model.save_pretrained(folder)
    return folder
