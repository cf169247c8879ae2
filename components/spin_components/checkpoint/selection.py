"""Judges iterations by their validations: which model is best, which regressed, and whether to continue.

An iteration is compared with the best model so far, the base model included, on the same held-out answers.

    regressed   its loss is not finite, or clearly higher than the best's, or its answers exceed a limit
    better      its loss is the lowest so far, and clearly lower than that of the last model that was better
    unclear     anything else

A change is clear if its confidence interval excludes 0 and it is larger than `min_delta`. The best model is the one
with the lowest loss of those that did not regress. It may differ from the last one that was better: many small
improvements, none of them clear, add up to a clear one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spin_components.record.bootstrap import Difference
from spin_components.record.decisions import Decision, Outcome, name_of
from spin_components.settings.attempt import SelectionSettings

Compare = Callable[[int, int], Difference | None]


@dataclass(frozen=True, slots=True)
class Measured:
    """Validation results of a model.

    Attributes:
        iteration: whose policy it is; `layout.BASE` for the base model.
        val_loss: None if it is not finite.
        repetition_rate: of the answers it samples; None if it sampled none.
        length_ratio: likewise.
    """

    iteration: int
    val_loss: float | None
    repetition_rate: float | None = None
    length_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Assessment:
    """The judgement of an iteration; models are named by their iteration.

    Attributes:
        reason: for the outcome, as a sentence.
        against: the best model before it.
        change: of val_loss from that model; None with too few answers.
        best: the best model after it.
        decision: what follows.
        next: the model that is the next reference; None if the run ends.
    """

    iteration: int
    outcome: Outcome
    reason: str
    against: int
    change: Difference | None
    best: int
    decision: Decision
    next: int | None


def assess(
    models: Sequence[Measured],
    compare: Compare,
    rules: SelectionSettings,
    *,
    max_iterations: int,
    steps_left: bool = True,
) -> list[Assessment]:
    """Judge every iteration in order.

    Args:
        models: the base model, then each iteration up to the one that just ended.
        compare: returns the paired change of val_loss from one model, by its iteration, to another.
        rules: the attempt's `[selection]`.
        max_iterations: of the attempt.
        steps_left: whether `max_steps` allows another step.
    """
    best = gained = models[0]
    waited, judged = 0, list[Assessment]()
    for model in models[1:]:
        against, change = best, compare(best.iteration, model.iteration)
        outcome, reason = _outcome(model, against, change, compare(gained.iteration, model.iteration), rules)
        if outcome == "better":
            gained, waited = model, 0
        else:
            waited += 1
        if outcome != "regressed" and _is_lower(model, best):
            best = model
        left = steps_left and model.iteration + 1 < max_iterations
        decision = _decide(model, outcome, rules, left=left, waited=waited)
        follows = {"continue": model.iteration, "roll_back": best.iteration}.get(decision)
        judged.append(
            Assessment(
                model.iteration, outcome, reason, against.iteration, change, best.iteration, decision, next=follows
            )
        )
    return judged


def _outcome(
    model: Measured, best: Measured, change: Difference | None, gain: Difference | None, rules: SelectionSettings
) -> tuple[Outcome, str]:
    if model.val_loss is None:
        return "regressed", "val_loss is not finite"
    if broken := _broken_limit(model, rules):
        return "regressed", broken
    reason = _words(change, best, rules.confidence)
    if change and change.low > 0 and change.mean > rules.min_delta:
        return "regressed", reason
    if gain and gain.high < 0 and gain.mean < -rules.min_delta and _is_lower(model, best):
        return "better", reason
    return "unclear", reason


def _is_lower(model: Measured, other: Measured) -> bool:
    return model.val_loss is not None and model.val_loss < (math.inf if other.val_loss is None else other.val_loss)


def _broken_limit(model: Measured, rules: SelectionSettings) -> str:
    rate, ratio, most = model.repetition_rate, model.length_ratio, rules.max_length_ratio
    if rules.max_repetition and rate is not None and rate > rules.max_repetition:
        return f"repetition_rate {rate:.3f} exceeds selection.max_repetition = {rules.max_repetition:g}"
    if most and ratio is not None and not 1 / most <= ratio <= most:
        return f"length_ratio {ratio:.3f} is not within selection.max_length_ratio = {most:g} of the human's length"
    return ""


def _words(change: Difference | None, best: Measured, confidence: float) -> str:
    against = name_of(best.iteration)
    if change is None:
        return f"too few answers to hold val_loss against {against}"
    interval = f"{100 * confidence:g} %: {change.low:+.4f} to {change.high:+.4f}"
    return f"val_loss {change.mean:+.4f} ({interval}) against {against}"


def _decide(model: Measured, outcome: Outcome, rules: SelectionSettings, *, left: bool, waited: int) -> Decision:
    regressed = outcome == "regressed"
    cannot_play = model.val_loss is None and rules.on_regression == "continue"
    if regressed and (rules.on_regression == "stop" or cannot_play):
        return "regressed"
    if not left:
        return "done"
    if rules.patience and waited >= rules.patience:
        return "regressed" if regressed else "saturated"
    return "roll_back" if regressed and rules.on_regression == "roll_back" else "continue"
