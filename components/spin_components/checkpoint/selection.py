"""Judges iterations by their validations: which model is best, which regressed or drifted, and whether to continue.

An iteration is compared with the best model so far, the base model included, by `selection.measure`: on the same
held-out prompts the loss of the human answers, or the likeness of the policy's own answers to them, or the judge's
score; or a task of the evaluation.

    drifted     its own answers went astray: see `drift.find_drift`
    regressed   its loss is not finite, or its measure is clearly worse than the best's
    better      its measure is the best so far, and clearly better than that of the last model that was better, and no
                other measure is clearly worse than the best's: see `drift.find_loss`
    unclear     anything else

A change is clear if its confidence interval excludes 0 and it is larger than `min_delta`. The best model is the one
with the best measure of those that neither regressed nor drifted; the base model counts as one of these. It may differ
from the last one that was better: many small improvements, none of them clear, add up to a clear one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spin_components.checkpoint.drift import find_drift, find_loss
from spin_components.checkpoint.measured import Changes, Compare, Comparison, Measured
from spin_components.record.bootstrap import Difference
from spin_components.record.decisions import REJECTED, Decision, Outcome
from spin_components.settings.selection import SelectionSettings


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
    changes: Changes = lambda measure, before, after: None,
) -> list[Assessment]:
    """Judge every iteration in order.

    Args:
        models: the reference of iteration 0, then each iteration up to the one that just ended.
        compare: returns the paired change of val_loss from one model, by its iteration, to another.
        rules: the attempt's `[selection]`.
        max_iterations: of the attempt.
        steps_left: whether `max_steps` allows another step.
        changes: returns the change of another measure.
    """
    comparison = Comparison(rules.measure, compare, changes)
    best = gained = models[0]
    waited, judged = 0, list[Assessment]()
    for model in models[1:]:
        against = best
        outcome, reason, is_worse = _outcome(model, best, gained, comparison, rules)
        if outcome == "better":
            gained, waited = model, 0
        else:
            waited += 1
        if outcome not in REJECTED and comparison.is_better(model, best):
            best = model
        left = steps_left and model.iteration + 1 < max_iterations
        reaction = _reaction(outcome, is_worse, rules)
        decision = _decide(model, outcome, reaction, rules, left=left, waited=waited)
        follows = {"continue": model.iteration, "roll_back": best.iteration}.get(decision)
        change = compare(against.iteration, model.iteration)
        judged.append(
            Assessment(
                model.iteration, outcome, reason, against.iteration, change, best.iteration, decision, next=follows
            )
        )
    return judged


def _outcome(
    model: Measured, best: Measured, gained: Measured, comparison: Comparison, rules: SelectionSettings
) -> tuple[Outcome, str, bool]:
    """Outcome of an iteration, the reason for it, and whether its measure is clearly worse than the best's."""
    if model.val_loss is None:
        return "regressed", "val_loss is not finite", True
    change, gain = comparison.change(best, model), comparison.change(gained, model)
    reason = comparison.words(best, model, rules.confidence)
    is_worse = change is not None and change.low > 0 and change.mean > rules.min_delta
    if drift := find_drift(model, comparison, rules):
        return "drifted", f"{drift}; {reason}", is_worse
    if is_worse:
        return "regressed", reason, True
    is_gain = gain is not None and gain.high < 0 and gain.mean < -rules.min_delta
    if is_gain and comparison.is_better(model, best):
        if loss := find_loss(model, best, comparison, rules):
            return "unclear", f"{loss}; {reason}", False
        return "better", reason, False
    return "unclear", reason, False


def _reaction(outcome: Outcome, is_worse: bool, rules: SelectionSettings) -> str:
    """What `[selection]` says to do: of an iteration that drifted and is worse too, the stricter of the two."""
    asked = {rules.on_regression} if is_worse else set()
    if outcome == "drifted":
        asked.add(rules.on_drift)
    return next((reaction for reaction in ("stop", "roll_back") if reaction in asked), "continue")


def _decide(
    model: Measured, outcome: Outcome, reaction: str, rules: SelectionSettings, *, left: bool, waited: int
) -> Decision:
    cannot_play = model.val_loss is None and reaction == "continue"
    if (outcome == "regressed" or outcome == "drifted") and (reaction == "stop" or cannot_play):
        return outcome
    if not left:
        return "done"
    if rules.patience and waited >= rules.patience:
        return "regressed" if outcome == "regressed" else "saturated"
    return "roll_back" if reaction == "roll_back" else "continue"
