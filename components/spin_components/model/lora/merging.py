"""Chains of adapters resolved to a merged model, to one adapter, or to a quantized model with a frozen adapter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spin_components.errors import ModelError
from spin_components.model.loading import load_model, save_policy
from spin_components.model.lora.files import copy_tokenizer, read_config, read_weights
from spin_components.model.lora.layers import add_frozen, merge
from spin_components.settings.settings import Settings

LAYERED = "layered.json"
"""File of a folder that stands for a quantized model with adapters: their paths on this machine."""


def write_merged(base: Path, adapters: Sequence[Path], settings: Settings, folder: Path) -> None:
    """Write a float32 model folder: the base with all adapters merged into it, in order.

    With a quantized base, the dequantized 4-bit weights are used, since the adapters were trained on those.

    Args:
        base: a model folder.
        adapters: folders, from the first to the last.
        settings: of the run.
        folder: to be created.

    Raises:
        IntegrityError: an adapter does not belong to the base.
        ModelError: the base cannot be loaded.
    """
    if settings.lora.is_quantized:
        model = load_quantized(base, settings, torch.device("cpu"), "float32").dequantize()
        _forget_stored_bits(model)
    else:
        model = load_model(base, settings.model)
    for adapter in adapters:
        merge(model, adapter)
    save_policy(model, model.state_dict(), base, folder)


def _forget_stored_bits(model: Any) -> None:
    """Have transformers save a dequantized model without the form in which bitsandbytes had stored its weights."""
    from transformers.integrations.bitsandbytes import Bnb4bitDeserialize

    if (conversions := getattr(model, "_weight_conversions", None)) is not None:
        model._weight_conversions = [
            each
            for each in conversions
            if not any(isinstance(operation, Bnb4bitDeserialize) for operation in getattr(each, "operations", ()))
        ]


def write_layered(base: Path, adapters: Sequence[Path], folder: Path) -> None:
    """Write a folder for `load_layered` that holds only the paths of base and adapters, which must stay in place."""
    folder.mkdir(parents=True)
    paths = {"base": str(base.absolute()), "adapters": [str(adapter.absolute()) for adapter in adapters]}
    (folder / LAYERED).write_text(json.dumps(paths), encoding="utf-8")
    copy_tokenizer(base, folder)


def load_layered(folder: Path, settings: Settings, device: torch.device, precision: str) -> Any:
    """Load a quantized model with its adapters, joined into one and frozen.

    Raises:
        IntegrityError: an adapter does not belong to the base.
        ModelError: the base cannot be loaded.
    """
    paths = json.loads((folder / LAYERED).read_text("utf-8"))
    model = load_quantized(Path(paths["base"]), settings, device, precision)
    if paths["adapters"]:
        add_frozen(model, *joined([Path(adapter) for adapter in paths["adapters"]]))
    return model


def joined(adapters: Sequence[Path]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Join a chain of adapters to one: B1 A1 s1 + B2 A2 s2 = [B1 s1, B2 s2] [A1; A2], its rank the sum of the ranks.

    Args:
        adapters: folders of adapters of the same layers; at least one.

    Returns: peft's configuration and the weights by name; a single adapter unchanged.

    Raises:
        ModelError: a weight is not a matrix.
    """
    configs, weights = [read_config(each) for each in adapters], [read_weights(each) for each in adapters]
    if len(adapters) == 1:
        return configs[0], weights[0]
    scales = [config["lora_alpha"] / config["r"] for config in configs]
    joint: dict[str, Tensor] = {}
    for name in weights[0]:
        parts = [each[name] for each in weights]
        if any(part.ndim != 2 for part in parts):
            raise ModelError(f"{name} is not a matrix, so adapters of several iterations cannot be joined")
        if ".lora_A." in name:  # (r, inputs)
            joint[name] = torch.cat(parts, dim=0)
        else:  # (outputs, r)
            joint[name] = torch.cat([part * scale for part, scale in zip(parts, scales, strict=True)], dim=1)
    rank = sum(config["r"] for config in configs)
    return {**configs[-1], "r": rank, "lora_alpha": rank}, joint


def load_quantized(folder: Path, settings: Settings, device: torch.device, precision: str) -> Any:
    """Load a model with its linear layers quantized to nf4 by bitsandbytes, computing in `precision`.

    Raises:
        ModelError: it cannot be loaded or quantized.
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
            module.support_avx512bf16_for_cpu = False  # its kernel runs only without gradients, and rounds differently
    return model
