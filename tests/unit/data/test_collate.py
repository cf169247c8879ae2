from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spin_components.data.collate import spin_custom_collate
from spin_components.errors import ConfigError, DataError


def item(context: list[int], answer: list[int]) -> dict[str, Tensor]:
    return {
        "input_ids": torch.tensor(context + answer),
        "mask": torch.tensor([False] * len(context) + [True] * len(answer)),
        "context_ids": torch.tensor(context),
        "answer_ids": torch.tensor(answer),
    }


def test_a_batch_by_hand() -> None:
    batch = spin_custom_collate([item([5, 6, 7], [8]), item([5], [6, 2])], eos_id=2)
    expected = {
        "prompts_and_answers": torch.tensor([[5, 6, 7, 8], [5, 6, 2, 2]]),
        "masks": torch.tensor([[False, False, False, True], [False, True, True, False]]),
        "prompts_only": torch.tensor([[5, 6, 7], [5, 2, 2]]),
        "answers_only": torch.tensor([[8, 2], [6, 2]]),
        "prompt_lengths": torch.tensor([3, 1]),
        "combined_lengths": torch.tensor([4, 3]),
    }
    assert batch.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(batch[key], value)  # checks the dtype too


def test_an_eos_among_the_ids_is_kept_and_counted() -> None:
    # the padding is EOS too: only masks and lengths tell them apart
    batch = spin_custom_collate([item([5, 2], [2, 6, 2]), item([7], [8, 2])], eos_id=2)
    assert batch["prompts_and_answers"].tolist() == [[5, 2, 2, 6, 2], [7, 8, 2, 2, 2]]
    assert batch["masks"].tolist() == [[False, False, True, True, True], [False, True, True, False, False]]
    assert batch["answers_only"].tolist() == [[2, 6, 2], [8, 2, 2]]
    assert (batch["prompt_lengths"].tolist(), batch["combined_lengths"].tolist()) == ([2, 1], [5, 3])


def test_one_item_is_not_padded_and_other_keys_are_dropped() -> None:
    batch = spin_custom_collate([item([5, 6], [7]) | {"loss_mask": torch.tensor([0, 0, 1])}], eos_id=9)
    assert {key: value.tolist() for key, value in batch.items()} == {
        "prompts_and_answers": [[5, 6, 7]],
        "masks": [[False, False, True]],
        "prompts_only": [[5, 6]],
        "answers_only": [[7]],
        "prompt_lengths": [2],
        "combined_lengths": [3],
    }


def test_the_mask_is_the_items_own() -> None:
    # NeMo uses the item's mask unchanged: a prompt of several turns may contain answers
    several_turns = item([5, 6, 7], [8]) | {"mask": torch.tensor([False, True, False, True])}
    batch = spin_custom_collate([several_turns, item([5], [6])], eos_id=2)
    assert batch["masks"].tolist() == [[False, True, False, True], [False, True, False, False]]


ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=7)


@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=5), st.integers(0, 9))
def test_every_item_is_recovered_from_its_row(pairs: list[tuple[list[int], list[int]]], eos_id: int) -> None:
    batch = spin_custom_collate([item(context, answer) for context, answer in pairs], eos_id)
    for row, (context, answer) in enumerate(pairs):
        length, prompt = int(batch["combined_lengths"][row]), int(batch["prompt_lengths"][row])
        both, mask = batch["prompts_and_answers"][row], batch["masks"][row]
        assert both[:length].tolist() == context + answer
        assert both[mask].tolist() == batch["answers_only"][row][: len(answer)].tolist() == answer
        assert batch["prompts_only"][row][:prompt].tolist() == context
        assert set(both[length:].tolist()) <= {eos_id}
        assert not mask[length:].any()


def test_ids_become_int64_and_masks_bool() -> None:
    one = item([5], [6])
    one = {key: value.to(torch.int32) for key, value in one.items()}
    batch = spin_custom_collate([one], eos_id=2)
    assert {key: value.dtype for key, value in batch.items()} == {
        "prompts_and_answers": torch.int64,
        "masks": torch.bool,
        "prompts_only": torch.int64,
        "answers_only": torch.int64,
        "prompt_lengths": torch.int64,
        "combined_lengths": torch.int64,
    }


@pytest.mark.parametrize("flag", ["reset_position_ids", "reset_attention_mask", "eod_mask_loss"])
def test_unsupported_flags_are_refused_by_name(flag: str) -> None:
    flags: dict[str, Any] = {flag: True}
    with pytest.raises(ConfigError, match=f"{flag} = True is not supported"):
        spin_custom_collate([item([5], [6])], 2, **flags)


def test_flags_that_are_off_are_accepted() -> None:
    assert spin_custom_collate([item([5], [6])], 2, False, False, False)["prompt_lengths"].tolist() == [1]


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(DataError, match="the batch is empty"):
        spin_custom_collate([], 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.tensor([True])}, "item 1: mask has 1 entries for 2 input_ids"),
        ({"input_ids": torch.tensor([[5, 6]])}, r"input_ids is of shape \(1, 2\), expected a tensor of one dim"),
        ({"answer_ids": [6]}, "answer_ids is a list, expected a tensor"),
        ({"context_ids": torch.tensor([5.0])}, "context_ids is torch.float32, expected integers"),
        ({"mask": torch.tensor([0.0, 1.0])}, "mask is torch.float32, expected bool"),
    ],
)
def test_a_wrong_item_is_located(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        spin_custom_collate([item([5], [6]), item([5], [6]) | change], 2)


def test_missing_keys_are_named() -> None:
    with pytest.raises(DataError, match=r"item 0: keys \['input_ids'\], without \['mask', 'context_ids', 'answer"):
        spin_custom_collate([{"input_ids": torch.tensor([1])}], 2)
