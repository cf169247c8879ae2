"""Verdict on a run: whether its best iteration is better than the base model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from spin_components.record.bootstrap import Difference
from spin_components.record.history import History
from spin_components.store.layout import BASE

VerdictKind = Literal["better", "worse", "unclear", "open"]
MINUS = "−"
_NONE_BETTER = "No iteration is better than the base model."


@dataclass(frozen=True, slots=True)
class Verdict:
    """Comparison of the best iteration with the base model.

    Attributes:
        kind: result of the comparison; `open` if no iteration is finished.
        headline: the result in one sentence.
        detail: size and confidence interval of the change.
        iteration: iteration of the best model, `layout.BASE` for the base model; None if no iteration is finished.
        compared: iteration that is compared with the base model: the best one or, if the base model is the best, the
            one with the lowest val_loss.
        base_loss: val_loss of the base model, nats per token.
        compared_loss: val_loss of the compared iteration, nats per token.
        difference: change of val_loss from the base model to the compared iteration; None if unknown.
    """

    kind: VerdictKind
    headline: str
    detail: str
    iteration: int | None = None
    compared: int | None = None
    base_loss: float | None = None
    compared_loss: float | None = None
    difference: Difference | None = None


def compute_verdict(history: History, differences: dict[int, Difference]) -> Verdict:
    """Compare the best finished iteration with the base model.

    Args:
        history: manifests of the run.
        differences: changes of val_loss from the base model, by iteration.
    """
    if not history.base or not history.published:
        return Verdict("open", "No iteration is finished yet.", "The result appears after the first iteration.")
    best, base_loss = history.best, float(history.base.facts["val_loss"])
    losses = {
        it.number: float(it.published.facts["val_loss"])
        for it in history.published
        if it.published and it.published.facts["val_loss"] is not None
    }
    if not losses:
        return Verdict("worse", _NONE_BETTER, "No iteration's loss is finite.", best, base_loss=base_loss)
    compared = min(losses, key=lambda t: (losses[t], t)) if best is None or best == BASE else best
    difference, change = differences.get(compared), losses[compared] - base_loss
    direction = "fell" if change < 0 else "rose"
    where = f" in iteration {compared}, the best one" if best == BASE else ""
    loss = "The loss on held-out human answers"
    moved = f"{loss} {direction} from {base_loss:.3f} to {losses[compared]:.3f} nats per token{where}"
    if best == BASE and difference is not None:
        kind: VerdictKind = "worse"
        detail = f"{moved}: {_interval(difference)}.{_about_drift(history, compared)}"
    elif difference is None:
        kind = "better" if change < 0 and best != BASE else "worse"
        detail = f"{moved}. This run stored no losses of single answers, so there is no confidence interval."
    else:
        kind = ("better" if difference.mean < 0 else "worse") if difference.is_clear else "unclear"
        detail = f"{moved}: {_interval(difference)}."
    return Verdict(kind, _headline(kind, best), detail, best, compared, base_loss, losses[compared], difference)


def _headline(kind: VerdictKind, best: int | None) -> str:
    if kind == "better":
        return f"Iteration {best} is better than the base model."
    if kind == "unclear":
        return f"Iteration {best} is not significantly different from the base model."
    return _NONE_BETTER


def by_answers(verdict: Verdict, measure: str, changes: dict[int, Difference]) -> Verdict:
    """The verdict where `selection.measure` is one of the policy's own answers.

    Args:
        verdict: by val_loss, whose detail is kept.
        measure: chrf or match.
        changes: of the measure from the base model, by iteration.
    """
    best = verdict.iteration
    if best is None or best == BASE:
        return replace(verdict, kind="worse", headline=_NONE_BETTER, detail=f"{measure} decides. {verdict.detail}")
    change = changes.get(best)
    if change is None:
        kind: VerdictKind = "unclear"
        moved = f"Too few answers were measured to compare {measure}."
    else:
        kind = ("better" if change.mean > 0 else "worse") if change.is_clear else "unclear"
        moved = f"{measure} of greedy answers decides: {_interval(change)}."
    return replace(verdict, kind=kind, headline=_headline(kind, best), detail=f"{moved} {verdict.detail}")


def _about_drift(history: History, iteration: int) -> str:
    """Why an iteration of a lower loss is not better, as a sentence; empty unless it drifted."""
    facts = next((it.published.facts for it in history.published if it.published and it.number == iteration), {})
    return f" It has drifted: {facts['reason']}." if facts.get("outcome") == "drifted" else ""


def _interval(change: Difference) -> str:
    return (
        f"a change of {signed(change.mean)}, with a 95 % confidence interval from {signed(change.low)} to "
        f"{signed(change.high)} over {change.num_answers} answers"
    )


def signed(value: float, digits: int = 3) -> str:
    """Format a number with its sign, with U+2212 as minus."""
    return f"{'+' if value > 0 else MINUS if value < 0 else ''}{abs(value):.{digits}f}"


def percent(share: float) -> str:
    """Format a fraction in whole percent."""
    return f"{share * 100:.0f}\N{NO-BREAK SPACE}%"


def perplexity(loss: float) -> str:
    """Format exp(loss), the loss in nats per token, in three significant digits."""
    return f"{math.exp(loss):,.3g}" if loss < 7 else f"{math.exp(min(loss, 700)):,.0f}"
