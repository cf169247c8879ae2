"""The batch layout of a model: packed where a kernel of attention fits it, else padded, and both are checked.

Every step that loads a model computes two small example groups and compares them with the model's own forward pass.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from spin_components.algorithm.attention.kernels import LayerNeeds, Recorder, choose_kernel
from spin_components.algorithm.logprobs import answer_logprobs, is_packed
from spin_components.algorithm.packing import PACKED, Kernel, Prompted, attend_by_answer, packed_attention
from spin_components.errors import ModelError
from spin_components.model.compute import Compute
from spin_components.model.windows import short_windows
from spin_components.settings.training import TrainingSettings

logger = logging.getLogger(__name__)


_TOLERANCE = 1e-4
_PADDED_TOLERANCE = 2e-2
"""Of padded batches, which have no alternative, and of bf16: mistakes are gross, rounding is not."""


def resolve_packing(settings: TrainingSettings) -> Literal["packed", "aligned"]:
    """The batch layout of `training.packing`: packed (without padding) or aligned (padded).

    A model that no kernel fits is padded under `auto` (see `load_scored`).
    """
    return "aligned" if settings.packing == "off" else "packed"


def pack_where_it_fits(model: Any, settings: TrainingSettings, compute: Compute) -> bool:
    """Switch a model to packed attention as `training.packing` says; returns whether it is packed.

    Raises:
        ModelError: `training.packing` is "on" and the architecture does not support packing.
    """
    if resolve_packing(settings) == "aligned":
        return False
    reason = enable_packed_attention(model, compute)
    if reason and settings.packing == "on":
        raise ModelError(f"{type(model).__name__} does not support packing: {reason}; set training.packing = 'off'")
    if reason:
        logger.warning("packing is off: %s does not support it: %s", type(model).__name__, reason)
    return not reason


def enable_packed_attention(model: Any, compute: Compute) -> str:
    """Switch a model to packed attention, if its log-probabilities of two small example groups stay the same.

    They are computed with the kernel for CPUs. On a GPU the kernel is then chosen by what the layers need.

    Args:
        model: plain or, on every rank, a DeepSpeed engine.
        compute: device and precision.

    Returns: an empty string, or why the model keeps its own attention.
    """
    inner = getattr(model, "module", model)
    before = inner.config._attn_implementation
    layers: set[LayerNeeds] = set()
    register_kernel(PACKED, Recorder(layers, attend_by_answer))
    try:
        reason = _probe(model, inner, compute)
        if not reason:
            dtype = torch.bfloat16 if compute.precision == "bf16" else torch.float32
            name, kernel, refused = choose_kernel(sorted(layers), dtype, compute.device)
            for other, why in refused.items():
                logger.info("packed attention: not %s: %s", other, why)
            if name != PACKED:
                register_kernel(name, kernel)
                inner.set_attn_implementation(name)
                logger.info("packed attention: %s", name)
    except NotImplementedError as error:
        reason = str(error)
    finally:
        register_kernel(PACKED, attend_by_answer)
    if reason:
        inner.set_attn_implementation(before)
    return reason


def register_kernel(name: str, kernel: Kernel) -> None:
    """Register a kernel as an attention implementation of `transformers`."""
    from transformers import AttentionInterface

    AttentionInterface.register(name, partial(packed_attention, kernel=kernel))


def _probe(model: Any, inner: Any, compute: Compute) -> str:
    """Switch a model to the attention that is registered as `PACKED`, and compute two small example groups.

    Args:
        model: see `enable_packed_attention`.
        inner: the plain model.
        compute: device and precision.

    Returns: an empty string, or why it cannot be packed.
    """
    device = compute.device
    groups, rows = _examples(inner.get_input_embeddings().num_embeddings)
    is_bf16 = model is not inner and compute.precision == "bf16"  # a DeepSpeed engine enters autocast by itself
    tolerance = _PADDED_TOLERANCE if is_bf16 else _TOLERANCE
    with torch.no_grad(), short_windows(inner):
        expected = _stock_logprobs(model, groups, rows, device)
        try:
            inner.set_attn_implementation(PACKED)
            if not is_packed(model):
                raise NotImplementedError("its attention cannot be replaced")
            difference = _difference(answer_logprobs(model, groups, device), expected)
            return f"its log-probabilities differ by {difference:.1e}" if not difference < tolerance else ""
        except (NotImplementedError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            return str(error)


def check_padded(model: Any, device: torch.device) -> None:
    """Refuse a model that scores padded batches otherwise than single sequences.

    Raises:
        ModelError: see above.
    """
    groups, rows = _examples(model.get_input_embeddings().num_embeddings)
    with torch.no_grad(), short_windows(model):
        expected = _stock_logprobs(model, groups, rows, device)
        if not torch.isfinite(expected).all():
            return  # training has destroyed the weights, which is no fault of the architecture
        difference = _difference(answer_logprobs(model, groups, device), expected)
    if not difference < _PADDED_TOLERANCE:
        raise ModelError(
            f"{type(model).__name__} cannot be trained: in padded batches its log-probabilities differ by "
            f"{difference:.1e}, relative, from those of its own forward pass"
        )


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _stock_logprobs(model: Any, groups: Sequence[Prompted], rows: list[list[int]], device: torch.device) -> Tensor:
    """Sums of the groups' answers, by the model's own forward pass over rows of one length without padding."""
    logits = model(input_ids=torch.tensor(rows, device=device), use_cache=False).logits
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    answers = [(len(prompt), answer) for prompt, both in groups for answer in both]
    sums = [
        row[torch.arange(first - 1, first - 1 + len(answer)), torch.tensor(answer)].sum()
        for row, (first, answer) in zip(logprobs, answers, strict=True)
    ]
    return torch.stack(sums)


def _examples(vocabulary: int) -> tuple[list[Prompted], list[list[int]]]:
    """Two groups of different lengths with arbitrary tokens; small, because every step with a model runs them.

    Returns: the groups, and a row for each of their answers: prompt, answer, and further tokens up to one length.
    """
    tokens = [7 + index * 31 % max(vocabulary - 7, 1) for index in range(24)]
    groups = [
        Prompted(tokens[:5], (tokens[5:7], tokens[7:12])),
        Prompted(tokens[12:14], (tokens[14:20], tokens[20:24])),
    ]
    sequences = [[*prompt, *answer] for prompt, answers in groups for answer in answers]
    longest = max(map(len, sequences))
    return groups, [sequence + tokens[: longest - len(sequence)] for sequence in sequences]
