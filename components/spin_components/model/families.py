"""What an architecture must have to be trained, found in a model's structure; its weights may be absent."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from spin_components.algorithm.head import answer_head
from spin_components.errors import ModelError


def check_family(model: Any) -> None:
    """Refuse a model whose answers cannot be scored.

    Args:
        model: of transformers, on any device, also "meta".

    Raises:
        ModelError: what its architecture lacks.
    """
    if lacking := _lacking(model):
        raise ModelError(
            f"{type(model).__name__} (model_type {model.config.model_type!r}) cannot be trained: {lacking}; "
            "choose a base model of another family"
        )


_RANDOM = {"phimoe": "its router draws experts at random in training, so the loss would not begin at ln 2"}
"""Architectures whose forward pass stays random without dropout, by `model_type`."""

_POSITIONS = ("wpe", "embed_positions", "position_embeddings")
"""Names of tables of learned positions."""


def _lacking(model: Any) -> str:
    """What the architecture lacks; "" if nothing."""
    if reason := _RANDOM.get(model.config.model_type):
        return reason
    if model.config.is_encoder_decoder:
        return "it has an encoder, and prompts are read by a decoder alone"
    if model.get_output_embeddings() is None:
        return "it has no output layer over the vocabulary"
    body = answer_head(model).body
    if body is not None and _has_positions(body) and "position_ids" not in inspect.signature(body.forward).parameters:
        return "it has a table of positions but takes no position_ids, so prompts cannot be padded"
    return ""


def _has_positions(body: nn.Module) -> bool:
    """Whether a module of the body is a table of learned positions."""
    return any(
        isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _POSITIONS
        for name, module in body.named_modules()
    )
