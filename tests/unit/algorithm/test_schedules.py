from __future__ import annotations

import math

import pytest

from spin_components.algorithm.schedules import learning_rate, resolve_count


@pytest.mark.parametrize(
    ("value", "total", "expected"),
    [
        (3, 10, 3),
        (1, 10, 1),
        (0, 10, 0),
        (12, 10, 10),  # a count is limited to the total
        (1.0, 10, 10),
        (0.5, 10, 5),
        (0.59, 10, 5),  # fractions are rounded down
        (0.01, 10, 1),  # a fraction above 0 gives at least one
        (0.0, 10, 0),
        (0.5, 0, 0),
        (3, 0, 0),
    ],
)
def test_counts_and_fractions(value: int | float, total: int, expected: int) -> None:
    assert resolve_count(value, total) == expected


@pytest.mark.parametrize(("value", "expected"), [(0.01, 0), (0.1, 1), (1.0, 10), (0, 0), (1, 1)])
def test_a_small_fraction_gives_none_if_at_least_is_0(value: int | float, expected: int) -> None:
    assert resolve_count(value, 10, at_least=0) == expected


def rates(schedule: str, *, num_steps: int, num_warmup: int, peak: float, floor: float = 0.0) -> list[float]:
    return [
        learning_rate(schedule, step, num_steps=num_steps, num_warmup=num_warmup, peak=peak, floor=floor)
        for step in range(num_steps)
    ]


def test_linear_by_hand() -> None:
    # warm-up by thirds, the peak on step 2, then four steps of a quarter each: zero would come on step 6
    schedule_rates = rates("linear", num_steps=6, num_warmup=2, peak=3.0)
    assert schedule_rates == pytest.approx([1.0, 2.0, 3.0, 2.25, 1.5, 0.75])


def test_linear_falls_towards_the_floor() -> None:
    # from 5 to 1 in four steps of 1
    assert rates("linear", num_steps=4, num_warmup=0, peak=5.0, floor=1.0) == pytest.approx([5.0, 4.0, 3.0, 2.0])


def test_cosine_by_hand() -> None:
    # (1 + cos) / 2 at 0, pi/4, pi/2, 3 pi/4, over the span from 0.2 to 1.2
    half = math.sqrt(0.5)
    expected = [1.2, 0.2 + (1 + half) / 2, 0.7, 0.2 + (1 - half) / 2]
    assert rates("cosine", num_steps=4, num_warmup=0, peak=1.2, floor=0.2) == pytest.approx(expected)


def test_constant_stays_at_the_peak_after_warm_up() -> None:
    assert rates("constant", num_steps=5, num_warmup=1, peak=2.0) == pytest.approx([1.0, 2.0, 2.0, 2.0, 2.0])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_rate_is_above_0_and_at_most_the_peak(schedule: str) -> None:
    for num_warmup in range(6):
        schedule_rates = rates(schedule, num_steps=5, num_warmup=num_warmup, peak=1.0)
        assert all(0.0 < rate <= 1.0 for rate in schedule_rates)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_single_step_has_the_peak_rate(schedule: str) -> None:
    assert rates(schedule, num_steps=1, num_warmup=0, peak=0.5) == [0.5]
