"""Causal language models in Hugging Face layout: loading as they must be compared, saving as others load them."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spin_components.errors import ModelError
from spin_components.model_folder import copy_companions
from spin_components.settings import ModelSettings

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

_DROPOUTS = (
    "attention_dropout",
    "attn_pdrop",
    "classifier_dropout",
    "dropout",
    "embd_pdrop",
    "hidden_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "resid_pdrop",
)


def load_model(
    folder: Path, settings: ModelSettings, *, device: torch.device | str = "cpu", quantization: Any = None
) -> Any:
    """A causal language model with float32 weights and no dropout; where a quantization is given, but for those layers.

    Float32, because an update at lr 5e-7 is smaller than bf16 can hold; no dropout, because policy and reference
    must agree exactly before the first step.

    Raises:
        ModelError: transformers cannot load it.
    """
    import_generation()
    from transformers import AutoConfig, AutoModelForCausalLM

    quiet_transformers()
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
        without_dropout = {name: 0.0 for name in _DROPOUTS if getattr(config, name, 0.0)}
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation=_attention(device),
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=True,
            **({"quantization_config": quantization, "device_map": {"": str(device)}} if quantization else {}),
            **without_dropout,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(f"the model in {folder} cannot be loaded: {error}") from error
    # an embedding with padding gives its row no gradient, and in many models padding and EOS are one token
    model.get_input_embeddings().padding_idx = None
    return model if quantization else model.to(device)  # what is quantised lies there already


def _attention(device: torch.device | str) -> str:
    """On a CPU eager attention is as fast as sdpa at short lengths (tests/benchmarks/attention.py: 1.01)."""
    return "sdpa" if torch.device(device).type == "cuda" else "eager"


def import_generation() -> None:
    """Import the slow part of transformers, which every model class needs, without what it would take along.

    Where they are installed, transformers imports scikit-learn and scipy, and pandas with them, for a kind of assisted
    generation and for losses of object detection, which nothing here uses: 2 to 3 of the seconds until a step works
    (tests/benchmarks/overhead.py).
    """
    hidden = [name for name in ("sklearn", "scipy") if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's sign for a module that is not there
    try:
        importlib.import_module("transformers.modeling_utils")
        importlib.import_module("transformers.generation.candidate_generator")
    finally:
        for name in hidden:
            del sys.modules[name]


def quiet_transformers() -> None:
    """No progress bars for loading: a step's output is lines."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def save_policy(model: Any, state_dict: Mapping[str, Tensor], like: Path, folder: Path) -> None:
    """Write weights as sharded safetensors with everything else as it lies in `like`.

    The files beside the weights (tokenizer, template, generation settings) are copied, not written anew, so that
    a policy differs from its base in weights alone; only the dtype in `config.json` follows the weights.

    Args:
        model: gives names and shard layout.
        state_dict: float32 weights.
        like: folder of the policy that training began from.
        folder: to be created.
    """
    folder.mkdir(parents=True)
    model.save_pretrained(folder, state_dict=dict(state_dict))
    copy_companions(like, folder)
