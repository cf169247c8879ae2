"""What a step learns does not depend on how its global batch is cut up."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spin_components.algorithm.loss import Objective
from spin_components.training.torch_backend import TorchBackend
from spin_components.training.train_step import StepResult
from support.bounds import float64
from support.families import model_of
from unit.training.test_train_step import backend_of, outcome_of, scored, split, step_bound

OBJECTIVES = [Objective(0.5), Objective(2.0, "hinge"), Objective(0.3, length_normalized=True, sft_weight=0.5)]


@st.composite
def partitions(draw: st.DrawFn) -> list[list[int]]:
    """The five pairs in any order, in parts of any sizes."""
    order = draw(st.permutations(range(5)))
    cuts = [0, *sorted(draw(st.sets(st.integers(1, 4)))), 5]
    return [list(order[start:end]) for start, end in itertools.pairwise(cuts)]


@settings(max_examples=20)
@given(
    parts=partitions(),
    filling=st.integers(0, 3),
    objective=st.sampled_from(OBJECTIVES),
    shifts=st.lists(st.floats(-4, 4, width=16), min_size=5, max_size=5),
)
def test_any_split_gives_the_same_gradients_and_metrics(
    parts: list[list[int]], filling: int, objective: Objective, shifts: list[float]
) -> None:
    with float64():
        model = copy.deepcopy(model_of("llama"))
        data = scored(model, *shifts)
        filled = [[parts[0][0]] * filling + parts[0], *parts[1:]]  # weights of 0 come first, as in `micro_batches`
        expected, one = gradients(backend_of(model, gradient_clip_val=0.0), data, split(range(5)), objective)
        found, other = gradients(
            backend_of(model, gradient_clip_val=0.0), data, split(*filled, filling=filling), objective
        )
    atol = step_bound(model, objective)
    # a pair whose two rewards are equal but for rounding is a tie: it may count as won with one split and not the other
    ties = sum(abs(actual - generated) < atol for actual, generated in one.rewards)
    won = [round(5 * outcome.metrics.pop("acc")) for outcome in (one, other)]
    assert abs(won[0] - won[1]) <= ties
    assert other.metrics == pytest.approx(one.metrics, abs=atol)
    assert torch.tensor(other.rewards) == pytest.approx(torch.tensor(one.rewards), abs=atol)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=atol)


def gradients(
    backend: TorchBackend, data: Any, micros: Any, objective: Objective
) -> tuple[dict[str, Tensor], StepResult]:
    """Of a step that changes no weight, because its rate is 0; and what else it gives."""
    seen: dict[str, Tensor] = {}
    named = list(backend.model.named_parameters())
    backend._optimizer.register_step_pre_hook(
        lambda *_: seen.update({name: parameter.grad.clone() for name, parameter in named})
    )
    return seen, outcome_of(backend, data, micros, objective=objective, lr=0.0)
