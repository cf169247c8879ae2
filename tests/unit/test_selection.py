from __future__ import annotations

import pytest

from spin_components.attempt_settings import SelectionSettings
from spin_components.checkpoint.selection import decide, to_prune


def decision(losses: list[float], *, patience: int = 0, min_delta: float = 0.0, max_iterations: int = 9) -> str:
    """After the iterations whose val_loss follows that of the base model."""
    return decide(losses, SelectionSettings(patience=patience, min_delta=min_delta), max_iterations=max_iterations)


def test_the_last_iteration_is_done_whatever_its_loss() -> None:
    assert [decision([2.0, loss], patience=1, max_iterations=1) for loss in (1.0, 2.0, 3.0)] == ["done"] * 3
    assert decision([2.0, 1.9, 1.8], max_iterations=2) == "done"
    assert decision([2.0, 1.9], max_iterations=2) == "continue"


def test_no_step_left_is_done() -> None:
    assert decide([2.0, 1.0], SelectionSettings(), max_iterations=9, steps_left=False) == "done"


def test_without_patience_nothing_stops_early() -> None:
    assert decision([1.0, 2.0, 3.0, 4.0]) == "continue"


def test_gain_continues() -> None:
    assert decision([2.0, 1.9], patience=1) == "continue"
    assert decision([2.0, 1.9, 1.8], patience=1) == "continue"


def test_an_iteration_as_good_as_the_best_is_saturated() -> None:
    assert decision([2.0, 2.0], patience=1) == "saturated"
    assert decision([2.0, 1.9, 1.9], patience=1) == "saturated"


def test_an_iteration_worse_than_the_best_is_regressed() -> None:
    assert decision([2.0, 2.1], patience=1) == "regressed"  # worse than the base already
    assert decision([2.0, 1.8, 1.9], patience=1) == "regressed"


def test_a_fall_within_min_delta_is_no_gain_and_a_rise_within_it_no_loss() -> None:
    assert decision([2.0, 1.95], patience=1, min_delta=0.1) == "saturated"
    assert decision([2.0, 2.05], patience=1, min_delta=0.1) == "saturated"
    assert decision([2.0, 2.15], patience=1, min_delta=0.1) == "regressed"
    assert decision([2.0, 1.85], patience=1, min_delta=0.1) == "continue"


def test_small_falls_add_up_to_a_gain() -> None:
    # 1.92 is 0.08 below the best that counted, 2.0; 1.86 is 0.14 below it
    assert decision([2.0, 1.92, 1.86], patience=2, min_delta=0.1) == "continue"


def test_patience_counts_iterations_in_a_row() -> None:
    assert decision([2.0, 2.1], patience=2) == "continue"
    assert decision([2.0, 2.1, 2.1], patience=2) == "regressed"
    assert decision([2.0, 2.1, 1.9, 2.0], patience=2) == "continue"  # the gain starts the count again
    assert decision([2.0, 2.1, 1.9, 2.0, 1.95], patience=2) == "regressed"


LOSSES = {0: 1.5, 1: 1.2, 2: 1.4, 3: 1.1, 4: 1.6}
"""From best to worst: 3, 1, 2, 0, 4."""


@pytest.mark.parametrize(
    ("save_top_k", "pruned"),
    [(-1, []), (5, []), (9, []), (4, []), (3, [0]), (2, [0, 2]), (1, [0, 1, 2]), (0, [0, 1, 2])],
)
def test_the_best_and_the_last_stay(save_top_k: int, pruned: list[int]) -> None:
    assert to_prune(LOSSES, save_top_k) == pruned


def test_among_equals_the_earlier_stays() -> None:
    assert to_prune({0: 1.0, 1: 1.0, 2: 1.0}, 1) == [1]


def test_what_is_pruned_once_is_not_needed_to_decide_again() -> None:
    assert to_prune({0: 1.0}, 1) == []
    assert to_prune({0: 1.0, 1: 2.0}, 1) == []
    assert to_prune({0: 1.0, 1: 2.0, 2: 3.0}, 1) == [1]
