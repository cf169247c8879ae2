from __future__ import annotations

import math
from typing import Any

import pytest

from spin_components.report.series import unlearnt_loss


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ({}, math.log(2)),  # a run that was started before the setting existed
        ({"loss": "logistic", "label_smoothing": 0.1, "length_normalized": True}, math.log(2)),
        ({"loss": "hinge"}, 1.0),
        ({"loss": "least_squares"}, 1.0),
    ],
)
def test_the_loss_of_a_policy_that_equals_its_reference(objective: dict[str, Any], expected: float) -> None:
    loss = unlearnt_loss(objective)
    assert loss is not None
    assert loss["y"] == expected


@pytest.mark.parametrize("objective", [{"sft_weight": 0.1}, {"base_weight": 0.5}])
def test_the_loss_is_unknown_where_it_depends_on_the_pairs(objective: dict[str, Any]) -> None:
    assert unlearnt_loss(objective) is None
