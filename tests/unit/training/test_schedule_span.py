from __future__ import annotations

from typing import Any

import pytest

from spin_components.prepare.step import _inputs
from spin_components.settings.settings import Settings
from spin_components.training.course import Course


def settings(span: str, max_iterations: int, max_epochs: Any) -> Settings:
    return Settings.model_validate(
        {
            "model": {"base": "m"},
            "data": {"train": "d"},
            "spin": {"max_iterations": max_iterations, "max_epochs": max_epochs},
            "training": {"lr_schedule_span": span},
        }
    )


def test_a_schedule_of_an_iteration_starts_anew() -> None:
    found = settings("iteration", 3, [2, 1, 1])
    assert [Course(found, t).span(10) for t in range(3)] == [(0, 20), (0, 10), (0, 10)]


def test_a_schedule_of_the_run_goes_on_through_the_iterations() -> None:
    # 2 + 1 + 1 epochs of 10 steps; with twice as many pairs an epoch counts as one all the same
    found = settings("run", 3, [2, 1, 1])
    assert [Course(found, t).span(10) for t in range(3)] == [(0, 40), (20, 40), (30, 40)]
    assert Course(found, 2).span(20) == (60, 80)
    # one iteration is the run
    assert Course(settings("run", 1, 2), 0).span(10) == Course(settings("iteration", 1, 2), 0).span(10)


@pytest.mark.parametrize("changed", [settings("run", 4, 1), settings("run", 3, [1, 1, 2])])
def test_the_epochs_of_a_scheduled_run_are_among_its_inputs(changed: Settings) -> None:
    name = "training.lr_schedule_span (epochs of the run)"
    assert _inputs(settings("run", 3, 1), {}, {})[name] == 3
    assert _inputs(changed, {}, {})[name] == 4
    assert name not in _inputs(settings("iteration", 3, 1), {}, {})
