"""Whatever is packed together, and in whatever order, scores and teaches alike."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.packing import PACKED, Prompted
from unit.algorithm.families import gradients, model_of

tokens = st.lists(st.integers(0, 63), min_size=1, max_size=6)
groups = st.builds(Prompted, tokens, st.tuples(tokens, tokens))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@settings(max_examples=12)
@given(
    order=st.lists(groups, min_size=2, max_size=5).flatmap(
        lambda found: st.tuples(st.just(found), st.permutations(range(len(found))))
    )
)
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
    torch.testing.assert_close(mixed.view(-1, 2), forwards.view(-1, 2)[list(places)], rtol=0.0, atol=2e-5)
    largest = max(1.0, *(float(tensor.abs().max()) for tensor in expected.values()))
    torch.testing.assert_close(gathered, expected, rtol=1e-4, atol=1e-5 * largest)


@settings(max_examples=12)
@given(found=st.lists(groups, min_size=1, max_size=4))
def test_packed_side_by_side_and_one_by_one_are_the_same_numbers(found: list[Prompted]) -> None:
    with torch.no_grad():
        packed = answer_logprobs(model_of("qwen2", PACKED), found)
        aligned = answer_logprobs(model_of("qwen2"), found)
        alone = torch.cat([answer_logprobs(model_of("qwen2", PACKED), [group]) for group in found])
    torch.testing.assert_close(packed, aligned, rtol=0.0, atol=2e-5)
    torch.testing.assert_close(packed, alone, rtol=0.0, atol=2e-5)
