from __future__ import annotations

import numpy as np
import pytest

from spin_components.report.series import evenly, min_max


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
