from __future__ import annotations

from typing import Any

import pytest

from spin_components.checkpoint.measured import Measured
from spin_components.checkpoint.selection import Assessment, assess
from spin_components.record.bootstrap import Difference
from spin_components.record.decisions import lowest, name_of
from spin_components.record.retention import to_prune
from spin_components.settings.selection import SelectionSettings
from spin_components.store.layout import BASE

WIDTH = 0.04
"""Half an interval's width: a change of val_loss by less is not clear."""


def judged(*losses: float | None, max_iterations: int = 9, steps_left: bool = True, **rules: Any) -> list[Assessment]:
    """Every iteration of a run with these losses, the base model's first."""
    models = [Measured(iteration, loss) for iteration, loss in enumerate(losses, start=BASE)]
    return judge_models(models, max_iterations=max_iterations, steps_left=steps_left, **rules)


def judge_models(
    models: list[Measured], *, max_iterations: int = 9, steps_left: bool = True, **rules: Any
) -> list[Assessment]:
    by_iteration = {model.iteration: model.val_loss for model in models}

    def compare(before: int, after: int) -> Difference | None:
        first, second = by_iteration[before], by_iteration[after]
        if first is None or second is None:
            return None
        mean = round(second - first, 9)
        return Difference(mean, round(mean - WIDTH, 9), round(mean + WIDTH, 9), 5, 10)

    return assess(models, compare, SelectionSettings(**rules), max_iterations=max_iterations, steps_left=steps_left)


B = BASE
STOP: dict[str, Any] = {}
ROLL: dict[str, Any] = {"on_regression": "roll_back"}
ON: dict[str, Any] = {"on_regression": "continue"}


@pytest.mark.parametrize(
    ("losses", "rules", "outcome", "decision", "best", "following"),
    [
        # a clear gain goes on from itself
        ((2.0, 1.9), STOP, "better", "continue", 0, 0),
        ((2.0, 1.9, 1.8), {"patience": 1}, "better", "continue", 1, 1),
        # not clear: 0.04 or less; the lower is best all the same, the higher is not, and equals leave the earlier
        ((2.0, 1.97), STOP, "unclear", "continue", 0, 0),
        ((2.0, 2.03), STOP, "unclear", "continue", B, 0),
        ((2.0, 2.0), STOP, "unclear", "continue", B, 0),
        ((2.0, 1.9, 1.9), STOP, "unclear", "continue", 0, 1),
        # clearly worse than the best so far, be it the base or an iteration, though better than the base
        ((2.0, 2.1), STOP, "regressed", "regressed", B, None),
        ((2.0, 1.8, 1.9), STOP, "regressed", "regressed", 0, None),
        ((2.0, 2.1), ROLL, "regressed", "roll_back", B, B),
        ((2.0, 1.8, 1.9), ROLL, "regressed", "roll_back", 0, 0),
        ((2.0, 1.8, 1.9), ON, "regressed", "continue", 0, 1),
        # a loss that is not finite: there is nothing to play with, whatever is asked
        ((2.0, None), STOP, "regressed", "regressed", B, None),
        ((2.0, 1.9, None), ROLL, "regressed", "roll_back", 0, 0),
        ((2.0, 1.9, None), ON, "regressed", "regressed", 0, None),
        # after a roll-back the next is held against the best, not against what was thrown away
        ((2.0, 1.8, None, 1.7), ROLL, "better", "continue", 2, 2),
        ((2.0, 1.8, 2.5, 2.4), ROLL | {"patience": 3}, "regressed", "roll_back", 0, 0),
        ((2.0, 1.8, 2.5, 2.4), ON | {"patience": 3}, "regressed", "continue", 0, 2),
        # patience counts iterations in a row without a clear gain, regressed ones among them
        ((2.0, 2.0), {"patience": 1}, "unclear", "saturated", B, None),
        ((2.0, 1.9, 1.9), {"patience": 1}, "unclear", "saturated", 0, None),
        ((2.0, 1.9, 1.9, 1.9), STOP, "unclear", "saturated", 0, None),  # 2 by default
        ((2.0, 1.9, 1.9, 1.8, 1.8), STOP, "unclear", "continue", 2, 3),  # the gain starts the count again
        ((2.0, 2.0, 2.0, 2.0), {"patience": 0}, "unclear", "continue", B, 2),
        ((2.0, 1.9, 2.5), ROLL | {"patience": 1}, "regressed", "regressed", 0, None),
        ((2.0, 1.9, 1.9, 2.5), ROLL, "regressed", "regressed", 0, None),
        # small falls add up: 1.94 is 0.06 below the base, the last that was better; 1.97 is best until then
        ((2.0, 1.97, 1.94), STOP, "better", "continue", 1, 1),
        # a change within min_delta is no gain, and no regression
        ((2.0, 1.92), {"min_delta": 0.1}, "unclear", "continue", 0, 0),
        ((2.0, 2.08), {"min_delta": 0.1}, "unclear", "continue", B, 0),
        ((2.0, 1.88), {"min_delta": 0.1}, "better", "continue", 0, 0),
        ((2.0, 2.12), {"min_delta": 0.1}, "regressed", "regressed", B, None),
        # clear of the base but not the lowest so far is no gain
        ((2.0, 1.965, 1.94, 1.95), {"patience": 1}, "unclear", "saturated", 1, None),
    ],
)
def test_rules(
    losses: tuple[float | None, ...],
    rules: dict[str, Any],
    outcome: str,
    decision: str,
    best: int,
    following: int | None,
) -> None:
    found = judged(*losses, **rules)[-1]
    assert (found.outcome, found.decision, found.best, found.next) == (outcome, decision, best, following)


@pytest.mark.parametrize(("loss", "decision"), [(1.0, "done"), (2.0, "done"), (3.0, "regressed"), (None, "regressed")])
def test_the_last_iteration_is_done_unless_it_regressed(loss: float | None, decision: str) -> None:
    for end in ({"max_iterations": 1}, {"steps_left": False}):
        assert judged(2.0, loss, patience=1, **end)[-1].decision == decision
    assert judged(2.0, loss, max_iterations=1, on_regression="roll_back")[-1].decision == "done"


def test_a_reason_names_what_it_is_held_against() -> None:
    first, second, third = judged(2.0, 1.9, 2.4, None, on_regression="roll_back")
    assert first.reason == "val_loss -0.1000 (95 %: -0.1400 to -0.0600) against the base model"
    assert second.reason == "val_loss +0.5000 (95 %: +0.4600 to +0.5400) against iteration 0"
    assert third.reason == "val_loss is not finite"
    assert (second.against, second.change) == (0, Difference(0.5, 0.46, 0.54, 5, 10))
    assert "(90 %: " in judged(2.0, 1.9, confidence=0.9)[0].reason


@pytest.mark.parametrize(
    ("rules", "repetition", "ratio", "broken"),
    [
        ({"max_length_ratio": 0}, 0.9, 9.0, ""),
        ({}, 0.9, 1.9, ""),
        ({}, 0.9, 2.1, "length_ratio 2.100 is not within selection.max_length_ratio = 2"),  # the default
        ({"max_repetition": 0.3}, 0.3, 1.0, ""),
        ({"max_repetition": 0.3}, 0.31, 1.0, "repetition_rate 0.310 exceeds selection.max_repetition = 0.3"),
        ({"max_length_ratio": 2.0}, 0.0, 2.0, ""),
        ({"max_length_ratio": 2.0}, 0.0, 0.5, ""),
        ({"max_length_ratio": 2.0}, 0.0, 2.1, "length_ratio 2.100 is not within selection.max_length_ratio = 2"),
        ({"max_length_ratio": 2.0}, 0.0, 0.4, "length_ratio 0.400 is not within"),
        ({"max_repetition": 0.3, "max_length_ratio": 2.0}, None, None, ""),
    ],
)
def test_answers_beyond_a_limit_have_drifted_however_low_the_loss(
    rules: dict[str, Any], repetition: float | None, ratio: float | None, broken: str
) -> None:
    models = [Measured(BASE, 2.0, 0.5, 5.0), Measured(0, 1.0, repetition, ratio)]
    (found,) = judge_models(models, **rules)
    assert (found.outcome, found.best) == (("drifted", BASE) if broken else ("better", 0))
    assert broken in found.reason


def test_without_a_paired_comparison_nothing_is_clear() -> None:
    models = [Measured(BASE, 2.0), Measured(0, 1.0), Measured(1, 3.0)]
    found = assess(models, lambda before, after: None, SelectionSettings(), max_iterations=9)
    assert [(each.outcome, each.best) for each in found] == [("unclear", 0), ("unclear", 0)]
    assert found[0].reason == "too few answers to hold val_loss against the base model"


def test_the_best_is_the_lowest_of_those_that_did_not_regress() -> None:
    assert lowest({BASE: 2.0, 0: 1.5, 1: 1.0, 2: None}, [1, 2]) == 0
    assert lowest({BASE: 2.0, 0: 1.5}, [0]) == BASE
    assert lowest({BASE: 2.0, 0: 2.0}, []) == BASE
    assert [name_of(BASE), name_of(3)] == ["the base model", "iteration 3"]


LOSSES: dict[int, float | None] = {0: 1.5, 1: 1.2, 2: 1.4, 3: 1.1, 4: 1.6}
"""From best to worst: 3, 1, 2, 0, 4."""


@pytest.mark.parametrize(
    ("save_top_k", "pruned"),
    [(-1, []), (5, []), (9, []), (4, []), (3, [0]), (2, [0, 2]), (1, [0, 1, 2]), (0, [0, 1, 2])],
)
def test_the_best_and_the_last_stay(save_top_k: int, pruned: list[int]) -> None:
    assert to_prune(LOSSES, save_top_k) == pruned


def test_regressed_iterations_go_first_but_for_the_last() -> None:
    # 3 broke a limit, so the best is 1
    assert to_prune(LOSSES, 2, [3]) == [0, 3]
    assert to_prune({0: 1.5, 1: None, 2: 1.4, 3: None}, 1, [1, 3]) == [0, 1]


def test_among_equals_the_earlier_stays() -> None:
    assert to_prune({0: 1.0, 1: 1.0, 2: 1.0}, 1) == [1]


def test_what_is_pruned_once_is_not_needed_to_decide_again() -> None:
    assert to_prune({0: 1.0}, 1) == []
    assert to_prune({0: 1.0, 1: 2.0}, 1) == []
    assert to_prune({0: 1.0, 1: 2.0, 2: 3.0}, 1) == [1]
