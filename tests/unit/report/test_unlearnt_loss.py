from __future__ import annotations

import math
from typing import Any

import pytest

from spin_components.report.series import unlearnt_loss


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ({}, math.log(2)),  # a run from before there was a choice
        ({"loss": "logistic", "label_smoothing": 0.1, "length_normalized": True}, math.log(2)),
        ({"loss": "hinge"}, 1.0),
        ({"loss": "least_squares"}, 1.0),
    ],
)
def test_a_policy_that_is_its_reference_has_this_loss(objective: dict[str, Any], expected: float) -> None:
    found = unlearnt_loss(objective)
    assert found is not None
    assert found["y"] == expected


@pytest.mark.parametrize("objective", [{"sft_weight": 0.1}, {"base_weight": 0.5}])
def test_where_it_depends_on_the_pairs_no_line_is_drawn(objective: dict[str, Any]) -> None:
    assert unlearnt_loss(objective) is None
