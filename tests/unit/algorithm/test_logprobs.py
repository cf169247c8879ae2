from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from spin_components.algorithm.logprobs import PromptAnswer, align, answer_logprobs, token_logprobs
from spin_components.algorithm.packing import Prompted
from support.bounds import float64
from support.families import (
    CONFIGS,
    LAYOUTS,
    SEQUENCES,
    SIZES,
    alone,
    assert_gradients_close,
    gradients,
    groups_of,
    logprob_bound,
    model_of,
)


def test_layout_by_hand() -> None:
    batch = align([PromptAnswer([5, 6, 7], [8]), PromptAnswer([9], [10, 11])])
    # prompts end, and answers begin, between the third and the fourth column
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 0], [0, 0, 9, 10, 11]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert [row[first:last] for row, first, last in zip(batch.position_ids.tolist(), (0, 2), (4, 5), strict=True)] == [
        [0, 1, 2, 3],
        [0, 1, 2],
    ]
    assert batch.answer_ids.tolist() == [[8, 0], [10, 11]]
    assert batch.answer_mask.tolist() == [[True, False], [True, True]]


def test_layout_has_the_dtypes_of_model_inputs() -> None:
    batch = align(SEQUENCES)
    assert [tensor.dtype for tensor in batch] == [torch.int64] * 4 + [torch.bool]
    assert (batch.position_ids >= 0).all()


def test_length_is_that_of_prompt_and_answer() -> None:
    assert len(PromptAnswer([1, 2, 3], [4, 5])) == 5


@pytest.mark.parametrize("attention", LAYOUTS)
@pytest.mark.parametrize("family", CONFIGS)
@float64()
def test_batched_log_probabilities_equal_those_of_single_sequences(family: str, attention: str) -> None:
    model = model_of(family)
    with torch.no_grad():
        logprobs = answer_logprobs(model_of(family, attention), groups_of(SEQUENCES))
        expected = torch.stack([alone(model, sequence) for sequence in SEQUENCES])
    torch.testing.assert_close(logprobs, expected, rtol=0.0, atol=logprob_bound(model))
    assert expected.max() < -1.0  # an answer is worth nats, and a mistake no less than a hundredth
    assert logprob_bound(model) < 1e-9


@pytest.mark.parametrize("attention", LAYOUTS)
@pytest.mark.parametrize("family", CONFIGS)
def test_float32_loses_no_more_than_rounding(family: str, attention: str) -> None:
    model = model_of(family, attention)
    with torch.no_grad():
        logprobs = answer_logprobs(model, groups_of(SEQUENCES))
        with float64():
            expected = answer_logprobs(copy.deepcopy(model).double(), groups_of(SEQUENCES))
    assert (logprobs.shape, logprobs.dtype) == ((len(SEQUENCES),), torch.float32)
    torch.testing.assert_close(logprobs.double(), expected, rtol=0.0, atol=logprob_bound(model))


@pytest.mark.parametrize("attention", LAYOUTS)
@pytest.mark.parametrize("family", CONFIGS)
@float64()
def test_batched_gradients_equal_those_of_single_sequences(family: str, attention: str) -> None:
    model, weights = model_of(family, attention), [1.0, -2.0, 0.5, 3.0, -1.0]
    computed = gradients(model, answer_logprobs(model, groups_of(SEQUENCES)), weights)
    model = model_of(family)
    expected = gradients(model, torch.stack([alone(model, sequence) for sequence in SEQUENCES]), weights)
    num_tokens = sum(len(sequence.answer_ids) for sequence in SEQUENCES)
    assert_gradients_close(model, computed, expected, weights, num_tokens)


@pytest.mark.parametrize(
    "change", [{"final_logit_softcapping": None}, {"attn_logit_softcapping": None}, {"sliding_window": 64}]
)
def test_the_gemma2_config_is_sensitive_to_caps_and_window(change: dict[str, Any]) -> None:
    config = Gemma2Config.from_dict({**CONFIGS["gemma2"].to_dict(), **change})
    other = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    other.load_state_dict(model_of("gemma2").state_dict())
    with torch.no_grad():
        differences = answer_logprobs(other, groups_of(SEQUENCES)) - answer_logprobs(
            model_of("gemma2"), groups_of(SEQUENCES)
        )
    assert differences.abs().max() > 1e-3


@pytest.mark.parametrize("attention", LAYOUTS)
@float64()
def test_order_is_kept(attention: str) -> None:
    model = model_of("llama", attention)
    with torch.no_grad():
        forwards = answer_logprobs(model, groups_of(SEQUENCES))
        backwards = answer_logprobs(model, groups_of(SEQUENCES[::-1]))
    torch.testing.assert_close(backwards, forwards.flip(0), rtol=0.0, atol=logprob_bound(model))


@pytest.mark.parametrize("attention", LAYOUTS)
@pytest.mark.parametrize("num", [1, 2, 3])
@float64()
def test_few_sequences(num: int, attention: str) -> None:
    model = model_of("llama")
    with torch.no_grad():
        logprobs = answer_logprobs(model_of("llama", attention), groups_of(SEQUENCES[:num]))
        expected = torch.stack([alone(model, sequence) for sequence in SEQUENCES[:num]])
    torch.testing.assert_close(logprobs, expected, rtol=0.0, atol=logprob_bound(model))


def test_tokens_outside_an_answer_are_zero() -> None:
    batch = align(SEQUENCES)
    with torch.no_grad():
        logprobs = token_logprobs(model_of("llama"), batch)
    assert logprobs.shape == batch.answer_mask.shape
    assert (logprobs[~batch.answer_mask] == 0.0).all()
    assert (logprobs[batch.answer_mask] < 0.0).all()


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("filling", [1, 2, 63])
@float64()
def test_padding_ids_do_not_change_log_probabilities(family: str, filling: int) -> None:
    model, batch = model_of(family), align(SEQUENCES)
    input_ids = batch.input_ids.masked_fill(batch.attention_mask == 0, filling)
    answer_ids = batch.answer_ids.masked_fill(~batch.answer_mask, filling)
    with torch.no_grad():
        before = token_logprobs(model, batch)
        after = token_logprobs(model, batch._replace(input_ids=input_ids, answer_ids=answer_ids))
    torch.testing.assert_close(after, before, rtol=0.0, atol=logprob_bound(model))


@float64()
def test_an_eos_that_is_also_the_pad_token_counts_like_any_other() -> None:
    plain = model_of("llama")
    config = LlamaConfig(**SIZES, num_key_value_heads=2, eos_token_id=2, pad_token_id=2)
    padded = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float64).eval()
    padded.load_state_dict(plain.state_dict())
    with torch.no_grad():
        groups = groups_of(SEQUENCES)
        logprobs, expected = answer_logprobs(padded, groups), answer_logprobs(plain, groups)
        torch.testing.assert_close(logprobs, expected, rtol=0.0, atol=logprob_bound(plain))
        # the second and the fourth answer end with EOS; without it they are likelier by what EOS costs
        cut = [PromptAnswer(prompt_ids, answer_ids[:-1]) for prompt_ids, answer_ids in (SEQUENCES[1], SEQUENCES[3])]
        whole = answer_logprobs(padded, groups_of([SEQUENCES[1], SEQUENCES[3]]))
    assert (answer_logprobs(padded, groups_of(cut)) > whole).all()


@pytest.mark.parametrize("attention", LAYOUTS)
def test_a_micro_batch_is_one_forward_pass(attention: str) -> None:
    model = copy.deepcopy(model_of("llama", attention))
    calls: list[Any] = []
    model.model.register_forward_hook(lambda *call: calls.append(call))
    answer_logprobs(model, [Prompted([5, 6], ([7], [8, 9, 10])), Prompted([11], ([12, 13], [14]))])
    assert len(calls) == 1
