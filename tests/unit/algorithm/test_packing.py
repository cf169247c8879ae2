from __future__ import annotations

import pytest
import torch
from torch import nn

from spin_components.algorithm.logprobs import PromptAnswer, answer_logprobs
from spin_components.algorithm.packing import PACKED, Prompted, pack, packed_attention
from support.bounds import checkpoint_contexts, float64
from support.families import (
    CONFIGS,
    LAYOUTS,
    alone,
    assert_gradients_close,
    gradients,
    groups_of,
    logprob_bound,
    model_of,
)

GROUPS = [
    Prompted([5, 6, 7, 8, 9, 10, 11], ([12], [21, 22, 23, 24, 25, 26, 2])),
    Prompted([20], ([0, 1, 2], [0, 1, 3])),
    Prompted([40, 41, 42], ([43, 44, 45, 46, 47, 48, 49, 2],)),
    Prompted([63, 62], ([61, 60], [59, 58, 57, 56, 55], [54])),
]
ALL = [PromptAnswer(prompt, answer) for prompt, answers in GROUPS for answer in answers]
NUM_TOKENS = sum(len(sequence.answer_ids) for sequence in ALL)


def test_layout_by_hand() -> None:
    batch = pack([Prompted([5, 6, 7], ([8, 9], [10])), Prompted([11], ([12, 13],))])
    # tokens:     5  6  7  8  9  10 | 11 12 13
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 10, 11, 12, 13]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 2]]
    assert batch.lengths.tolist() == [[[[3, 2, 1], [1, 2, 0]]]]
    # 8 and 10 are both predicted by the prompt's last token, 9 by 8; 12 by 11, 13 by 12
    assert batch.positions.tolist() == [2, 3, 2, 6, 7]
    assert batch.targets.tolist() == [8, 9, 10, 12, 13]
    assert batch.answers.tolist() == [0, 0, 1, 2, 2]


@pytest.mark.parametrize("attention", LAYOUTS)
@pytest.mark.parametrize("family", CONFIGS)
@float64()
def test_packed_answers_score_as_single_sequences(family: str, attention: str) -> None:
    model = model_of(family)
    with torch.no_grad():
        logprobs = answer_logprobs(model_of(family, attention), GROUPS)
        expected = torch.stack([alone(model, sequence) for sequence in ALL])
    torch.testing.assert_close(logprobs, expected, rtol=0.0, atol=logprob_bound(model, ALL))


@pytest.mark.parametrize("family", CONFIGS)
@float64()
def test_a_shared_prompt_sums_the_gradients_of_its_answers(family: str) -> None:
    weights = [1.0, -2.0, 0.5, 3.0, -1.0, 2.0, -0.5, 1.5]
    packed, plain = model_of(family, PACKED), model_of(family)
    logprobs = gradients(packed, answer_logprobs(packed, GROUPS), weights)
    expected = gradients(plain, torch.stack([alone(plain, sequence) for sequence in ALL]), weights)
    assert_gradients_close(plain, logprobs, expected, weights, NUM_TOKENS)


@float64()
def test_the_order_of_groups_does_not_matter() -> None:
    model = model_of("llama", PACKED)
    with torch.no_grad():
        forwards = torch.split(answer_logprobs(model, GROUPS), [2, 2, 1, 3])
        backwards = torch.split(answer_logprobs(model, GROUPS[::-1]), [3, 1, 2, 2])
    for one, other in zip(forwards, backwards[::-1], strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=logprob_bound(model, ALL))


@float64()
def test_gradient_checkpointing_computes_the_same() -> None:
    model = model_of("llama", PACKED)
    expected = gradients(model, answer_logprobs(model, GROUPS), [1.0] * 8)
    options = {"use_reentrant": False, "context_fn": checkpoint_contexts}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    model.train()
    try:
        logprobs = gradients(model, answer_logprobs(model, GROUPS), [1.0] * 8)
    finally:
        model.eval()
        model.gradient_checkpointing_disable()
    assert_gradients_close(model, logprobs, expected, [1.0] * 8, NUM_TOKENS)


def test_a_mask_without_lengths_is_refused() -> None:
    query = torch.zeros(1, 2, 4, 8)
    for mask in (None, torch.zeros(1, 1, 4, 4), torch.ones(1, 4, dtype=torch.int64)):
        with pytest.raises(NotImplementedError, match="needs the groups' lengths"):
            packed_attention(nn.Identity(), query, query, query, mask)


def test_unsupported_attention_options_are_refused() -> None:
    query, lengths = torch.zeros(1, 2, 4, 8), torch.tensor([[[[2, 2]]]])
    with pytest.raises(NotImplementedError, match="needs an option that packed attention does not support"):
        packed_attention(nn.Identity(), query, query, query, lengths, head_mask=torch.ones(2))
    with pytest.raises(NotImplementedError, match="needs an option"):
        packed_attention(nn.Identity(), query, query, query, lengths, dropout=0.1)


def test_packed_batches_have_no_padding() -> None:
    batch = pack(groups_of([PromptAnswer([1] * 50, [2]), PromptAnswer([3], [4] * 70)]))
    assert batch.input_ids.shape == (1, 51 + 71)
