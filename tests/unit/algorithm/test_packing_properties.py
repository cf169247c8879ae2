"""Log-probabilities and gradients do not depend on how groups are packed or ordered."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.packing import PACKED, Prompted
from support import bounds
from support.bounds import float64
from support.families import assert_gradients_close, gradients, model_of

MOST_TOKENS = 6
tokens = st.lists(st.integers(0, 63), min_size=1, max_size=MOST_TOKENS)
groups = st.builds(Prompted, tokens, st.tuples(tokens, tokens))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@settings(max_examples=12)
@given(
    order=st.lists(groups, min_size=2, max_size=5).flatmap(
        lambda prompt_groups: st.tuples(st.just(prompt_groups), st.permutations(range(len(prompt_groups))))
    )
)
@float64()
def test_the_order_of_groups_changes_neither_scores_nor_gradients(
    family: str, order: tuple[list[Prompted], list[int]]
) -> None:
    prompt_groups, permutation = order
    model = model_of(family, PACKED)
    weights = [float(index + 1) * sign for index in range(len(prompt_groups)) for sign in (1, -1)]
    forwards = answer_logprobs(model, prompt_groups)
    expected = gradients(model, forwards, weights)
    mixed = answer_logprobs(model, [prompt_groups[index] for index in permutation])
    mixed_weights = [weights[2 * index + answer] for index in permutation for answer in (0, 1)]
    gathered = gradients(model, mixed, mixed_weights)
    torch.testing.assert_close(
        mixed.view(-1, 2), forwards.view(-1, 2)[list(permutation)], rtol=0.0, atol=bounds.of_logprob(model, MOST_TOKENS)
    )
    assert_gradients_close(model, gathered, expected, weights, num_tokens=2 * MOST_TOKENS * len(prompt_groups))


@settings(max_examples=12)
@given(prompt_groups=st.lists(groups, min_size=1, max_size=4))
@float64()
def test_packed_padded_and_single_groups_give_the_same_log_probabilities(prompt_groups: list[Prompted]) -> None:
    with torch.no_grad():
        packed = answer_logprobs(model_of("qwen2", PACKED), prompt_groups)
        aligned = answer_logprobs(model_of("qwen2"), prompt_groups)
        alone = torch.cat([answer_logprobs(model_of("qwen2", PACKED), [group]) for group in prompt_groups])
    atol = bounds.of_logprob(model_of("qwen2"), MOST_TOKENS)
    torch.testing.assert_close(packed, aligned, rtol=0.0, atol=atol)
    torch.testing.assert_close(packed, alone, rtol=0.0, atol=atol)
