"""Loading of models for scoring: one batch layout and attention for reference, policy and validation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import torch

from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.packing import PACKED, Prompted, packed_attention
from spin_components.device import Compute
from spin_components.errors import ModelError
from spin_components.lora.merging import load_layered
from spin_components.modeling import load_model
from spin_components.settings import Settings, TrainingSettings

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-4


def resolve_packing(settings: TrainingSettings, compute: Compute) -> Literal["packed", "aligned"]:
    """The batch layout of `training.packing`: packed (without padding) or aligned (padded). `auto` packs on a CPU."""
    is_packed = settings.packing == "on" or (settings.packing == "auto" and compute.device.type == "cpu")
    return "packed" if is_packed else "aligned"


def load_scored(folder: Path, settings: Settings, compute: Compute) -> Any:
    """Load a model for computing log-probabilities, with packed attention where settings and architecture allow it.

    Args:
        folder: as returned by `store.models.open_scored`.
        settings: of the run.
        compute: device and precision.

    Raises:
        ModelError: it cannot be loaded, or `training.packing` is "on" and the architecture does not support packing.
    """
    if settings.lora.is_quantized:
        model = load_layered(folder, settings, compute.device, compute.precision)
    else:
        model = load_model(folder, settings.model, device=compute.device)
    if resolve_packing(settings.training, compute) == "packed" and (
        reason := enable_packed_attention(model, compute.device)
    ):
        if settings.training.packing == "on":
            raise ModelError(f"{type(model).__name__} does not support packing: {reason}; set training.packing = 'off'")
        logger.warning("packing is off: %s does not support it: %s", type(model).__name__, reason)
    return model


def enable_packed_attention(model: Any, device: torch.device) -> str:
    """Switch a model to packed attention, if its log-probabilities of two small example groups stay the same.

    Returns: an empty string, or why the model keeps its own attention.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
    before = model.config._attn_implementation
    groups = _examples(model.get_input_embeddings().num_embeddings)
    with torch.no_grad():
        expected = answer_logprobs(model, groups, device)
        try:
            model.set_attn_implementation(PACKED)
            packed = answer_logprobs(model, groups, device)
            difference = float((packed - expected).abs().max() / expected.abs().max())
            reason = f"its log-probabilities differ by {difference:.1e}" if not difference < _TOLERANCE else ""
        except (NotImplementedError, ValueError, TypeError, RuntimeError) as error:
            reason = str(error)
    if reason:
        model.set_attn_implementation(before)
    return reason


def _examples(vocabulary: int) -> list[Prompted]:
    """Two groups of different lengths with arbitrary tokens; small, because every step with a model runs them."""
    tokens = [7 + index * 31 % max(vocabulary - 7, 1) for index in range(24)]
    return [
        Prompted(tokens[:5], (tokens[5:7], tokens[7:12])),
        Prompted(tokens[12:14], (tokens[14:20], tokens[20:24])),
    ]
