"""Decisions by the judge's score or a task of the evaluation, with numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from spin_components.checkpoint.measured import Measured
from spin_components.checkpoint.selection import Assessment, assess
from spin_components.record.bootstrap import Difference, UnpairedDifference
from spin_components.record.evaluated import Evaluated
from spin_components.settings.selection import SelectionSettings
from spin_components.store.layout import BASE

WIDTH = 0.25
"""Half an interval's width: a change of a score by less is not clear."""


def judge(
    scores: tuple[float | None, ...],
    *,
    losses: tuple[float | None, ...] = (),
    measure: str = "judge",
    higher_is_better: bool = True,
    kind: type[Difference] = Difference,
    overrides: dict[tuple[int, int], Difference | None] | None = None,
    **rules: Any,
) -> list[Assessment]:
    """Every iteration of a run with these scores and equal losses, the base model's first."""
    title = "judge score" if measure == "judge" else "arc acc"
    models = [
        Measured(
            number - 1,
            losses[number] if losses else 2.0,
            evaluated=None if score is None else Evaluated(title, score, 0.1, 64, higher_is_better),
        )
        for number, score in enumerate(scores)
    ]
    by_iteration = {model.iteration: model for model in models}

    def compare(before: int, after: int) -> Difference | None:
        first, second = by_iteration[before].val_loss, by_iteration[after].val_loss
        if first is None or second is None:
            return None
        return Difference(second - first, second - first - 0.001, second - first + 0.001, 5, 10)

    def changes(name: str, before: int, after: int) -> Difference | None:
        if name != measure:
            return None
        if overrides and (before, after) in overrides:
            return overrides[before, after]
        first, second = by_iteration[before].evaluated, by_iteration[after].evaluated
        if first is None or second is None:
            return None
        mean = second.mean - first.mean
        return kind(mean, mean - WIDTH, mean + WIDTH, 5, 10)

    selection = SelectionSettings(measure=measure, **rules)
    return assess(models, compare, selection, max_iterations=9, changes=changes)


@pytest.mark.parametrize(
    ("scores", "rules", "outcome", "decision", "best"),
    [
        ((5.0, 5.5), {}, "better", "continue", 0),
        ((5.0, 5.25), {}, "unclear", "continue", 0),  # the interval begins at 0: not clear, and the best all the same
        ((5.0, 4.875), {}, "unclear", "continue", BASE),
        ((5.0, 4.5), {}, "regressed", "regressed", BASE),
        ((5.0, 4.5), {"on_regression": "roll_back"}, "regressed", "roll_back", BASE),
        ((5.0, 6.0, 5.5), {}, "regressed", "regressed", 0),
        ((5.0, 5.0, 5.0), {}, "unclear", "saturated", BASE),  # patience of 2
        ((5.0, 5.125, 5.375), {}, "better", "continue", 1),  # two small steps add up
        ((5.0, 5.5), {"min_delta": 0.5}, "unclear", "continue", 0),
        ((5.0, 5.75), {"min_delta": 0.5}, "better", "continue", 0),
    ],
)
def test_a_higher_score_is_better(
    scores: tuple[float, ...], rules: dict[str, Any], outcome: str, decision: str, best: int
) -> None:
    found = judge(scores, **rules)[-1]
    assert (found.outcome, found.decision, found.best) == (outcome, decision, best)


@pytest.mark.parametrize(
    ("values", "outcome", "best"),
    [((5.0, 4.5), "better", 0), ((5.0, 5.5), "regressed", BASE), ((5.0, 5.0), "unclear", BASE)],
)
def test_a_lower_value_is_better_where_the_harness_says_so(values: tuple[float, ...], outcome: str, best: int) -> None:
    found = judge(values, measure="task:arc/perplexity", higher_is_better=False)[-1]
    assert (found.outcome, found.best) == (outcome, best)
    assert found.reason.startswith(f"arc acc {values[1] - values[0]:+.4f} (95 %: "), (
        "the change itself, not its negative"
    )


def test_a_reason_names_the_measure_and_how_its_interval_was_made() -> None:
    assert judge((5.0, 5.5))[0].reason == "judge score +0.5000 (95 %: +0.2500 to +0.7500) against the base model"
    by_errors = judge((0.5, 1.0), measure="task:arc", kind=UnpairedDifference)[0]
    assert by_errors.outcome == "better"
    assert by_errors.reason == (
        "arc acc +0.5000 (95 %: +0.2500 to +0.7500, by standard errors, not paired) against the base model"
    )


def test_a_gain_at_the_price_of_the_human_answers_loss_is_no_gain() -> None:
    # 0.02 nats a token are more than the margin of 0.01
    (found,) = judge((5.0, 5.5), losses=(2.0, 2.02))
    assert found.outcome == "unclear"
    assert found.reason.startswith("val_loss +0.0200 (95 %: +0.0190 to +0.0210) against the base model; judge score")
    assert judge((5.0, 5.5), losses=(2.0, 2.005))[0].outcome == "better"


def test_a_loss_that_is_not_finite_needs_no_score() -> None:
    (found,) = judge((5.0, None), losses=(2.0, None))
    assert (found.outcome, found.best) == ("regressed", BASE)


def test_answers_that_both_models_have_scores_of_decide_which_is_best() -> None:
    # by the means of what each has it is 5.2 against 5.0, over common answers 0.1 less
    paired = Difference(-0.1, -0.2, 0.1, 3, 40)
    (found,) = judge((5.0, 5.2), overrides={(BASE, 0): paired})
    assert (found.outcome, found.best) == ("unclear", BASE)


def test_too_few_common_answers_are_no_clear_change() -> None:
    (found,) = judge((5.0, 6.0), overrides={(BASE, 0): None})
    assert (found.outcome, found.reason) == ("unclear", "too few answers to hold judge score against the base model")
