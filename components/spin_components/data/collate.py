"""Collate function with NeMo-Aligner's batch format for SPIN, padded on the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spin_components.errors import ConfigError, DataError

_KEYS = ("input_ids", "mask", "context_ids", "answer_ids")


def spin_custom_collate(
    batch: Sequence[Mapping[str, Tensor]],
    eos_id: int,
    reset_position_ids: bool = False,
    reset_attention_mask: bool = False,
    eod_mask_loss: bool = False,
) -> dict[str, Tensor]:
    """Pad B items to one batch.

    Args:
        batch: items with `input_ids` (T,), `mask` (T,) bool, False on the prompt and True on the answer,
            `context_ids` (P,) and `answer_ids` (A,); ids are integers. Other keys are ignored.
        eos_id: padding of the ids, on the right; masks are padded with False.
        reset_position_ids: must be False, like the next two: documents are not packed into one row.

    Returns:
        `prompts_and_answers` (B, max T) int64, `masks` (B, max T) bool, `prompts_only` (B, max P) int64,
        `answers_only` (B, max A) int64, `prompt_lengths` (B,) int64, `combined_lengths` (B,) int64.

    Raises:
        ConfigError: one of the three flags is True.
        DataError: the batch is empty, or an item lacks a key or has a tensor of another shape or dtype.
    """
    flags = {
        "reset_position_ids": reset_position_ids,
        "reset_attention_mask": reset_attention_mask,
        "eod_mask_loss": eod_mask_loss,
    }
    for name, value in flags.items():
        if value:
            raise ConfigError(f"spin_custom_collate: {name} = {value!r} is not supported, expected False; leave it out")
    if not batch:
        raise DataError("spin_custom_collate: the batch is empty, expected at least one item")
    for index, item in enumerate(batch):
        _check(index, item)
    return {
        "prompts_and_answers": _padded([item["input_ids"].long() for item in batch], eos_id),
        "masks": _padded([item["mask"].bool() for item in batch], False),
        "prompts_only": _padded([item["context_ids"].long() for item in batch], eos_id),
        "answers_only": _padded([item["answer_ids"].long() for item in batch], eos_id),
        "prompt_lengths": torch.tensor([len(item["context_ids"]) for item in batch], dtype=torch.int64),
        "combined_lengths": torch.tensor([len(item["input_ids"]) for item in batch], dtype=torch.int64),
    }


def _padded(rows: list[Tensor], value: int | bool) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)


def _check(index: int, item: Mapping[str, Tensor]) -> None:
    location = f"spin_custom_collate, item {index}"
    missing = [key for key in _KEYS if key not in item]
    if missing:
        raise DataError(f"{location}: keys {sorted(item)}, without {missing}; expected {list(_KEYS)}")
    for key in _KEYS:
        value = item[key]
        if not isinstance(value, Tensor) or value.dim() != 1:
            actual = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise DataError(f"{location}: {key} is {actual}, expected a tensor of one dimension")
        if value.is_floating_point() or value.is_complex() or (key != "mask" and value.dtype == torch.bool):
            raise DataError(f"{location}: {key} is {value.dtype}, expected {'bool' if key == 'mask' else 'integers'}")
    if len(item["mask"]) != len(item["input_ids"]):
        raise DataError(
            f"{location}: mask has {len(item['mask'])} entries for {len(item['input_ids'])} input_ids, "
            "expected one each"
        )
