from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from spin_components.report.series import unlearnt_loss
from support.bounds import gamma


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ({}, math.log(2)),  # a run that was started before the setting existed
        ({"loss": "logistic", "label_smoothing": 0.1, "length_normalized": True}, math.log(2)),
        ({"loss": "hinge"}, 1.0),
        ({"loss": "least_squares"}, 1.0),
        ({"loss": "nce", "mu": 1.0}, 2 * math.log(2)),
        ({"loss": "nce", "mu": 2.0}, math.log(3) + 2 * math.log(1.5)),
    ],
)
def test_the_loss_of_a_policy_that_equals_its_reference(objective: dict[str, Any], expected: float) -> None:
    loss = unlearnt_loss(objective)
    assert loss is not None
    assert loss["y"] == pytest.approx(expected, rel=gamma(8, torch.float64))


@pytest.mark.parametrize("objective", [{"sft_weight": 0.1}, {"base_weight": 0.5}, {"loss": "sft"}, {"loss": "triplet"}])
def test_the_loss_is_unknown_where_it_depends_on_the_pairs(objective: dict[str, Any]) -> None:
    assert unlearnt_loss(objective) is None
