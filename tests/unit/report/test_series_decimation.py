from __future__ import annotations

import numpy as np
import pytest

from spin_components.report.series import evenly, min_max, step_series


def test_a_short_series_is_kept_completely() -> None:
    assert min_max(np.array([3.0, 1.0, 2.0]), 3).tolist() == [0, 1, 2]
    assert min_max(np.array([]), 10).tolist() == []


def test_each_part_keeps_its_smallest_and_its_largest_value() -> None:
    #                   part 0                part 1
    values = np.array([0.0, 9.0, -5.0, 1.0, 2.0, 2.5, 7.0, 3.0])
    assert min_max(values, 4).tolist() == [0, 1, 2, 4, 6, 7]  # and both ends


def test_single_peaks_are_kept() -> None:
    values = np.zeros(10_000)
    values[4321], values[8765] = 5.0, -5.0
    kept = min_max(values, 100)
    assert len(kept) <= 102
    assert {4321, 8765} <= set(kept.tolist())


@pytest.mark.parametrize(("num", "most", "expected"), [(0, 5, []), (3, 5, [0, 1, 2]), (101, 3, [0, 50, 100])])
def test_indices_are_evenly_spread(num: int, most: int, expected: list[int]) -> None:
    assert evenly(num, most).tolist() == expected


def test_advantages_are_lines_of_the_steps_that_have_them() -> None:
    row = {
        "loss": 1.0,
        "acc": 0.5,
        "rewards_actual_mean": 0.0,
        "rewards_generated_mean": 0.0,
        "lr": 1.0,
        "grad_norm": 1.0,
    }
    rows = [
        {**row, "iteration": 0, "step": 1, "current_advantage_mean": -2.0},
        {**row, "iteration": 1, "step": 2, "current_advantage_mean": 1.0, "historical_advantage_mean": 3.0},
    ]
    series = step_series(rows)
    assert series["current_advantage_mean"] == {"x": [1, 2], "y": [-2.0, 1.0]}
    assert series["historical_advantage_mean"] == {"x": [2], "y": [3.0]}
    assert not [name for name in step_series([{**row, "iteration": 0, "step": 1}]) if "advantage" in name]
