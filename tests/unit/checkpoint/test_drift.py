from __future__ import annotations

import math
from typing import Any

import pytest

from spin_components.checkpoint.drift import MARGINS
from spin_components.checkpoint.measured import Measured
from spin_components.checkpoint.selection import Assessment, assess
from spin_components.record.bootstrap import Difference
from spin_components.settings.selection import SelectionSettings
from spin_components.store.layout import BASE


def change(mean: float, width: float = 0.01) -> Difference:
    return Difference(mean, mean - width, mean + width, 5, 10)


def judge(
    losses: tuple[float, ...],
    answers: dict[tuple[str, int, int], Difference],
    *,
    chrf: tuple[float, ...] | None = None,
    ratios: tuple[float, ...] | None = None,
    max_iterations: int = 9,
    **rules: Any,
) -> list[Assessment]:
    """Every iteration of a run, each trained from the one before; the base model's values first."""
    models = [
        Measured(
            number - 1,
            loss,
            0.0,
            ratios[number] if ratios else 1.0,
            chrf[number] if chrf else None,
            None,
            reference=number - 2 if number else BASE,
        )
        for number, loss in enumerate(losses)
    ]
    by_iteration = {model.iteration: model.val_loss for model in models}

    def compare(before: int, after: int) -> Difference:
        first, second = by_iteration[before], by_iteration[after]
        assert first is not None and second is not None
        return change(round(second - first, 9))

    return assess(
        models,
        compare,
        SelectionSettings(**rules),
        max_iterations=max_iterations,
        changes=lambda measure, before, after: answers.get((measure, before, after)),
    )


@pytest.mark.parametrize(
    ("measure", "found", "words"),
    [
        ("ended", -0.2, "share of answers that end by themselves -0.2000 (95 %: -0.2100 to -0.1900) against the base"),
        ("repetition", 0.2, "repeated 4-grams +0.2000 (95 %: +0.1900 to +0.2100) against the base model"),
    ],
)
def test_answers_that_became_clearly_worse_have_drifted_however_low_the_loss(
    measure: str, found: float, words: str
) -> None:
    (judged,) = judge((2.0, 1.0), {(measure, BASE, 0): change(found)})
    assert (judged.outcome, judged.best, judged.decision, judged.next) == ("drifted", BASE, "continue", 0)
    assert judged.reason.startswith(words)
    assert judged.reason.endswith("val_loss -1.0000 (95 %: -1.0100 to -0.9900) against the base model")
    # the other way round it is a gain, and a change whose interval contains 0 or that is within the margin is none
    within = math.copysign(0.9 * MARGINS[measure], found)
    for harmless in (change(-found), change(found, 2 * abs(found)), change(within, 0.0)):
        assert judge((2.0, 1.0), {(measure, BASE, 0): harmless})[0].outcome == "better"


def test_a_drifted_iteration_is_not_best_and_the_next_is_held_against_the_best() -> None:
    first, second, third = judge((2.0, 1.9, 1.5, 1.8), {}, ratios=(1.0, 1.2, 3.2, 1.1))
    assert [each.outcome for each in (first, second, third)] == ["better", "drifted", "better"]
    assert [each.best for each in (first, second, third)] == [0, 0, 2]
    assert third.against == 0


@pytest.mark.parametrize(
    ("loss", "rules", "decision", "following"),
    [
        (1.5, {}, "continue", 0),
        (1.5, {"on_drift": "stop"}, "drifted", None),
        (1.5, {"on_drift": "roll_back"}, "roll_back", BASE),
        # worse as well as drifted: the stricter of the two rules
        (2.5, {}, "drifted", None),
        (2.5, {"on_regression": "continue"}, "continue", 0),
        (2.5, {"on_regression": "continue", "on_drift": "roll_back"}, "roll_back", BASE),
        (2.5, {"on_regression": "roll_back", "on_drift": "stop"}, "drifted", None),
        (1.5, {"patience": 1}, "saturated", None),
        (1.5, {"max_iterations": 1}, "done", None),
        (1.5, {"max_iterations": 1, "on_drift": "stop"}, "drifted", None),
    ],
)
def test_what_follows_a_drift(loss: float, rules: dict[str, Any], decision: str, following: int | None) -> None:
    (judged,) = judge((2.0, loss), {}, ratios=(1.0, 0.4), **rules)
    assert (judged.outcome, judged.decision, judged.next) == ("drifted", decision, following)


def test_the_measure_that_decides_may_be_the_likeness_of_answers() -> None:
    answers = {("chrf", BASE, 0): change(2.0), ("chrf", 0, 1): change(-3.0), ("chrf", BASE, 1): change(-1.0)}
    first, second = judge((2.0, 2.005, 1.0), answers, chrf=(20.0, 22.0, 19.0), measure="chrf")
    assert (first.outcome, first.best) == ("better", 0)
    assert first.reason == "chrf +2.0000 (95 %: +1.9900 to +2.0100) against the base model"
    assert (second.outcome, second.best, second.decision) == ("regressed", 0, "regressed")
    assert second.reason == "chrf -3.0000 (95 %: -3.0100 to -2.9900) against iteration 0"


@pytest.mark.parametrize(
    ("measure", "found", "words"),
    [
        ("chrf", -3.0, "chrf -3.0000 (95 %: -3.0100 to -2.9900) against the base model; val_loss -1.0000 "),
        ("match", -0.1, "match -0.1000 (95 %: -0.1100 to -0.0900) against the base model; val_loss -1.0000 "),
    ],
)
def test_where_another_measure_is_clearly_worse_the_iteration_is_not_better_but_may_be_best(
    measure: str, found: float, words: str
) -> None:
    (judged,) = judge((2.0, 1.0), {(measure, BASE, 0): change(found)})
    assert (judged.outcome, judged.best, judged.decision) == ("unclear", 0, "continue")
    assert judged.reason.startswith(words)
    within = math.copysign(0.9 * MARGINS[measure], found)
    for harmless in (change(-found), change(found, 2 * abs(found)), change(within, 0.0)):
        assert judge((2.0, 1.0), {(measure, BASE, 0): harmless})[0].outcome == "better"


def test_where_answers_decide_a_clearly_higher_loss_is_no_gain() -> None:
    answers = {("chrf", BASE, 0): change(2.0)}
    (judged,) = judge((2.0, 2.1), answers, chrf=(20.0, 22.0), measure="chrf")
    assert (judged.outcome, judged.best) == ("unclear", 0)
    assert judged.reason.startswith("val_loss +0.1000")


def test_answers_that_were_not_measured_decide_nothing() -> None:
    (judged,) = judge((2.0, 1.0), {}, measure="chrf")
    assert (judged.outcome, judged.best) == ("unclear", BASE)
    assert judged.reason == "too few answers to hold chrf against the base model"
