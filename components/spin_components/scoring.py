"""Models that score answers: the same layout and attention for reference, policy and validation."""

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
    """How sequences are laid out: end to end, or side by side with padding. `auto` packs on a CPU."""
    packed = settings.packing == "on" or (settings.packing == "auto" and compute.device.type == "cpu")
    return "packed" if packed else "aligned"


def load_scored(folder: Path, settings: Settings, compute: Compute) -> Any:
    """Load a model to compute log-probabilities with, packed where that is asked for and gives the same numbers.

    Args:
        folder: what `store.models.open_scored` gives.
        settings: of the run.
        compute: device and precision.

    Raises:
        ModelError: it cannot be loaded, or `training.packing = "on"` and this architecture cannot be packed.
    """
    if settings.lora.is_quantized:
        model = load_layered(folder, settings, compute.device, compute.precision)
    else:
        model = load_model(folder, settings.model, device=compute.device)
    if resolve_packing(settings.training, compute) == "packed" and (
        reason := give_packed_attention(model, compute.device)
    ):
        if settings.training.packing == "on":
            raise ModelError(f"{type(model).__name__} cannot be packed: {reason}; set training.packing = 'off'")
        logger.warning("%s is not packed: %s", type(model).__name__, reason)
    return model


def give_packed_attention(model: Any, device: torch.device) -> str:
    """Have a model compute packed batches, if it then scores a few sequences as it did before.

    Returns: empty, or why it is left as it was.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
    before = model.config._attn_implementation
    groups = _examples(model.get_input_embeddings().num_embeddings)
    with torch.no_grad():
        expected = answer_logprobs(model, groups, device)
        try:
            model.set_attn_implementation(PACKED)
            found = answer_logprobs(model, groups, device)
            difference = float((found - expected).abs().max() / expected.abs().max())
            reason = f"its log-probabilities differ by {difference:.1e}" if not difference < _TOLERANCE else ""
        except (NotImplementedError, ValueError, TypeError, RuntimeError) as error:
            reason = str(error)
    if reason:
        model.set_attn_implementation(before)
    return reason


def _examples(vocabulary: int) -> list[Prompted]:
    """Two groups of unlike lengths, with whatever tokens; few, because every step with a model begins with them."""
    tokens = [7 + place * 31 % max(vocabulary - 7, 1) for place in range(24)]
    return [
        Prompted(tokens[:5], (tokens[5:7], tokens[7:12])),
        Prompted(tokens[12:14], (tokens[14:20], tokens[20:24])),
    ]
