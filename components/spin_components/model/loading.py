"""Loading and saving of causal language models in Hugging Face layout."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spin_components.errors import ModelError
from spin_components.model.folder import copy_companions
from spin_components.model.frozen_weights import FrozenWeights
from spin_components.model.loading_report import check_loaded
from spin_components.settings.run import ModelSettings

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

_DROPOUT = re.compile("drop")
_NOISE = ("jitter_noise", "input_jitter_noise")
"""Attributes of routers with the noise that they add to their input in training."""


def load_model(
    folder: Path,
    settings: ModelSettings,
    *,
    device: torch.device | str = "cpu",
    quantization: Any = None,
    frozen: FrozenWeights | None = None,
) -> Any:
    """Load a causal language model with float32 weights and without dropout or a router's noise.

    Float32, because updates at a learning rate of 5e-7 are below the resolution of bf16 weights; no dropout, because
    policy and reference must agree exactly before the first step. A mixture of experts does not return its router's
    logits: the loss does not use them.

    Args:
        folder: in Hugging Face layout, with safetensors.
        settings: of the model.
        device: where the weights are put.
        quantization: transformers' quantization config; the layers that it quantizes are not float32. Of a model that
            is stored in 4 bits, only its compute dtype counts.
        frozen: takes the weights over, for a model that is not trained; None for float32 weights with gradients.

    Raises:
        ModelError: transformers cannot load it, or finds no numbers for some of its weights.
    """
    import_generation()
    from transformers import AutoConfig, AutoModelForCausalLM

    quiet_transformers()
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
        _make_deterministic(config)
        if stored := getattr(config, "quantization_config", None):
            number = str(getattr(quantization, "bnb_4bit_compute_dtype", torch.float32)).removeprefix("torch.")
            config.quantization_config = {**stored, "bnb_4bit_compute_dtype": number}
        with frozen.loading(config) if frozen else nullcontext():
            model, found = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                attn_implementation=_attention(device),
                trust_remote_code=settings.trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                **_generation(folder, config),
                **({"quantization_config": quantization} if quantization and not stored else {}),
                **({"device_map": {"": str(device)}} if quantization else {}),
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(f"the model in {folder} cannot be loaded: {error}") from error
    if not quantization:  # quantized weights have other names than those in the files
        check_loaded(found, found["unexpected_keys"], what=f"the model in {folder}")
    # the row at padding_idx gets no gradient, and in many models the padding token is EOS
    model.get_input_embeddings().padding_idx = None
    for module in model.modules():
        for name in _NOISE:
            if getattr(module, name, 0.0):
                setattr(module, name, 0.0)
    if frozen and frozen.parts:
        _move_buffers(model, device)
    elif not quantization:  # quantized weights were loaded onto the device
        model.to(device)
    return model


def _move_buffers(model: Any, device: torch.device | str) -> None:
    """Move a model's buffers to a device; its parameters, which are without contents, cannot be moved."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)


def _make_deterministic(config: Any) -> None:
    """Set every dropout of a configuration and of its text model's to 0, and leave out the router's logits."""
    for each in (config, config.get_text_config()):
        for name, value in list(vars(each).items()):
            if _DROPOUT.search(name) and isinstance(value, float) and value:
                setattr(each, name, 0.0)
        if getattr(each, "output_router_logits", False):
            each.output_router_logits = False


def _generation(folder: Path, config: Any) -> dict[str, Any]:
    """Arguments that have a model loaded without its `generation_config.json`, where transformers cannot read that."""
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_pretrained(folder)
    except OSError:  # there is none
        return {}
    except (ValueError, TypeError, AttributeError):
        return {"generation_config": GenerationConfig.from_model_config(config)}
    return {}


def _attention(device: torch.device | str) -> str:
    """Attention implementation of a device: on a CPU, eager is as fast as sdpa at short lengths
    (tests/benchmarks/attention.py: ratio 1.01)."""
    return "sdpa" if torch.device(device).type == "cuda" else "eager"


def import_generation() -> None:
    """Import transformers' model and generation modules without its optional imports of scikit-learn and scipy.

    Where these are installed, transformers imports them, and pandas with them, for one kind of assisted generation and
    for losses of object detection. Neither is used here; they take 2 to 3 s of a step's start
    (tests/benchmarks/overhead.py).
    """
    hidden = [name for name in ("sklearn", "scipy") if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # None makes an import raise ModuleNotFoundError
    try:
        importlib.import_module("transformers.modeling_utils")
        importlib.import_module("transformers.generation.candidate_generator")
    finally:
        for name in hidden:
            del sys.modules[name]


def quiet_transformers() -> None:
    """Disable transformers' progress bars, which do not belong in a log."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def save_policy(model: Any, state_dict: Mapping[str, Tensor], like: Path, folder: Path) -> None:
    """Write a policy's folder: weights as sharded safetensors, all other files copied from `like`.

    Tokenizer, template and generation settings are copied and not written again, so that a policy differs from its base
    only in the weights and in the dtype that `config.json` names.

    Args:
        model: gives the parameter names and the shard layout.
        state_dict: float32 weights.
        like: folder of the policy that training started from.
        folder: to be created.
    """
    folder.mkdir(parents=True)
    generation = model.generation_config
    model.generation_config = _savable(model)  # of the folder `like`, the file is copied as it is
    try:
        model.save_pretrained(folder, state_dict=dict(state_dict))
    finally:
        model.generation_config = generation
    copy_companions(like, folder)


def write_companions(model: Any, like: Path, folder: Path) -> None:
    """Write the files of a policy beside its weights, as `save_policy` does."""
    folder.mkdir(parents=True, exist_ok=True)
    if model.can_generate():
        _savable(model).save_pretrained(folder)
    copy_companions(like, folder)


def _savable(model: Any) -> Any:
    """The model's generation settings, or the first of two plainer ones that transformers does not refuse to save."""
    from transformers import GenerationConfig

    for config in (model.generation_config, GenerationConfig.from_model_config(model.config)):
        with suppress(ValueError):
            config.validate(strict=True)
            return config
    return GenerationConfig()
