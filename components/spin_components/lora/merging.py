"""Chains of adapters made into something without a chain: a plain model, one adapter, or a model that scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spin_components.errors import ModelError
from spin_components.lora.files import copy_tokenizer, read_config, read_weights
from spin_components.lora.layers import add_frozen, merge
from spin_components.modeling import load_model, save_policy
from spin_components.settings import Settings

LAYERED = "layered.json"
"""In a folder that stands for a model of 4-bit weights with adapters upon them: where those lie on this machine."""


def write_merged(base: Path, adapters: Sequence[Path], settings: Settings, folder: Path) -> None:
    """Write a plain model folder, float32: the base with each adapter merged into it, one after the other.

    A quantised base is taken as its 4-bit weights compute, since the adapters were trained on those.

    Args:
        base: a model folder.
        adapters: from the first to the last.
        settings: of the run.
        folder: to be created.

    Raises:
        IntegrityError: an adapter is of another model.
        ModelError: the base cannot be loaded.
    """
    if settings.lora.is_quantized:
        model = load_quantized(base, settings, torch.device("cpu"), "float32").dequantize()
    else:
        model = load_model(base, settings.model)
    for adapter in adapters:
        merge(model, adapter)
    save_policy(model, model.state_dict(), base, folder)


def write_layered(base: Path, adapters: Sequence[Path], folder: Path) -> None:
    """Write a folder that `load_layered` loads: only names, valid as long as what they name is there."""
    folder.mkdir(parents=True)
    named = {"base": str(base.absolute()), "adapters": [str(adapter.absolute()) for adapter in adapters]}
    (folder / LAYERED).write_text(json.dumps(named), encoding="utf-8")
    copy_tokenizer(base, folder)


def load_layered(folder: Path, settings: Settings, device: torch.device, precision: str) -> Any:
    """A model of 4-bit weights with its adapters, frozen, as one beside each layer.

    Raises:
        IntegrityError: an adapter is of another model.
        ModelError: the base cannot be loaded.
    """
    named = json.loads((folder / LAYERED).read_text("utf-8"))
    model = load_quantized(Path(named["base"]), settings, device, precision)
    if named["adapters"]:
        add_frozen(model, *joined([Path(adapter) for adapter in named["adapters"]]))
    return model


def joined(adapters: Sequence[Path]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """One adapter that adds what a chain adds: B1 A1 s1 + B2 A2 s2 = [B1 s1, B2 s2] [A1; A2], of the ranks' sum.

    Args:
        adapters: of one run, so of the same layers; at least one.

    Returns: peft's configuration and the weights by name; a single adapter as it is.
    """
    configs, weights = [read_config(each) for each in adapters], [read_weights(each) for each in adapters]
    if len(adapters) == 1:
        return configs[0], weights[0]
    scales = [config["lora_alpha"] / config["r"] for config in configs]
    found: dict[str, Tensor] = {}
    for name in weights[0]:
        parts = [each[name] for each in weights]
        if any(part.ndim != 2 for part in parts):
            raise ModelError(f"{name} is not a matrix; adapters of several iterations cannot be made one there")
        if ".lora_A." in name:  # (r, inputs)
            found[name] = torch.cat(parts, dim=0)
        else:  # (outputs, r)
            found[name] = torch.cat([part * scale for part, scale in zip(parts, scales, strict=True)], dim=1)
    rank = sum(config["r"] for config in configs)
    return {**configs[-1], "r": rank, "lora_alpha": rank}, found


def load_quantized(folder: Path, settings: Settings, device: torch.device, precision: str) -> Any:
    """A model whose linear layers are nf4 by bitsandbytes, quantised as they are loaded; computes in `precision`.

    Raises:
        ModelError: it cannot be loaded so.
    """
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
    )
    model = load_model(folder, settings.model, device=device, quantization=quantization)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # a kernel that only inference has: policy would differ from it
    return model
