"""Finds out whether a policy's own answers went astray, and which measures that do not decide became worse.

A change counts where its interval excludes 0 and it is larger than a margin.
"""

from __future__ import annotations

from spin_components.checkpoint.measured import Comparison, Measured, interval
from spin_components.record.decisions import name_of
from spin_components.settings.selection import SelectionSettings

MARGINS = {"ended": 0.05, "repetition": 0.05, "nll": 0.01, "chrf": 1.0, "match": 0.02}
"""Changes for the worse up to which a measure is not clearly worse: shares of answers and of 4-grams, nats a token,
points of 100, and a share of answers."""


def find_drift(model: Measured, comparison: Comparison, rules: SelectionSettings) -> str:
    """Why a policy has drifted, as part of a sentence; empty if it has not.

    Args:
        model: the policy.
        comparison: of the models.
        rules: the attempt's `[selection]`.
    """
    if broken := _broken_limit(model, rules):
        return broken
    reference, confidence = name_of(model.reference), rules.confidence
    ended = comparison.changes("ended", model.reference, model.iteration)
    if ended and ended.high < 0 and ended.mean < -MARGINS["ended"]:
        return f"share of answers that end by themselves {interval(ended, confidence)} against {reference}"
    repeated = comparison.changes("repetition", model.reference, model.iteration)
    if repeated and repeated.low > 0 and repeated.mean > MARGINS["repetition"]:
        return f"repeated 4-grams {interval(repeated, confidence)} against {reference}"
    return ""


def find_loss(model: Measured, best: Measured, comparison: Comparison, rules: SelectionSettings) -> str:
    """Which measure that does not decide is clearly worse than the best model's, as part of a sentence; empty if none.

    Args:
        model: the policy.
        best: the best model before it.
        comparison: of the models.
        rules: the attempt's `[selection]`.
    """
    for other in ("nll", "chrf", "match"):
        if other == rules.measure:
            continue
        held = Comparison(other, comparison.compare, comparison.changes)
        change = held.change(best, model)
        if change and change.low > 0 and change.mean > MARGINS[other]:
            return held.words(best, model, rules.confidence)
    return ""


def _broken_limit(model: Measured, rules: SelectionSettings) -> str:
    """Which limit of `[selection]` the sampled answers break, as part of a sentence; empty for none."""
    rate, ratio, most = model.repetition_rate, model.length_ratio, rules.max_length_ratio
    if rules.max_repetition and rate is not None and rate > rules.max_repetition:
        return f"repetition_rate {rate:.3f} exceeds selection.max_repetition = {rules.max_repetition:g}"
    if most and ratio is not None and not 1 / most <= ratio <= most:
        return f"length_ratio {ratio:.3f} is not within selection.max_length_ratio = {most:g} of the human's length"
    return ""
