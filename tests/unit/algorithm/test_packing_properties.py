"""Whatever is packed together, and in whatever order, scores and teaches alike."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bounds
from bounds import float64
from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.packing import PACKED, Prompted
from unit.algorithm.families import assert_gradients_close, gradients, model_of

MOST_TOKENS = 6
tokens = st.lists(st.integers(0, 63), min_size=1, max_size=MOST_TOKENS)
groups = st.builds(Prompted, tokens, st.tuples(tokens, tokens))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@settings(max_examples=12)
@given(
    order=st.lists(groups, min_size=2, max_size=5).flatmap(
        lambda found: st.tuples(st.just(found), st.permutations(range(len(found))))
    )
)
@float64()
def test_the_order_of_groups_changes_neither_scores_nor_gradients(
    family: str, order: tuple[list[Prompted], list[int]]
) -> None:
    found, places = order
    model = model_of(family, PACKED)
    weights = [float(place + 1) * sign for place in range(len(found)) for sign in (1, -1)]
    forwards = answer_logprobs(model, found)
    expected = gradients(model, forwards, weights)
    mixed = answer_logprobs(model, [found[place] for place in places])
    mixed_weights = [weights[2 * place + answer] for place in places for answer in (0, 1)]
    gathered = gradients(model, mixed, mixed_weights)
    torch.testing.assert_close(
        mixed.view(-1, 2), forwards.view(-1, 2)[list(places)], rtol=0.0, atol=bounds.of_logprob(model, MOST_TOKENS)
    )
    assert_gradients_close(model, gathered, expected, weights, num_tokens=2 * MOST_TOKENS * len(found))


@settings(max_examples=12)
@given(found=st.lists(groups, min_size=1, max_size=4))
@float64()
def test_packed_side_by_side_and_one_by_one_are_the_same_numbers(found: list[Prompted]) -> None:
    with torch.no_grad():
        packed = answer_logprobs(model_of("qwen2", PACKED), found)
        aligned = answer_logprobs(model_of("qwen2"), found)
        alone = torch.cat([answer_logprobs(model_of("qwen2", PACKED), [group]) for group in found])
    atol = bounds.of_logprob(model_of("qwen2"), MOST_TOKENS)
    torch.testing.assert_close(packed, aligned, rtol=0.0, atol=atol)
    torch.testing.assert_close(packed, alone, rtol=0.0, atol=atol)
