"""What came of a run, in one sentence and one number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from spin_components.algorithm.interval import Difference
from spin_components.report.history import History
from spin_components.store.layout import BASE

Outcome = Literal["better", "worse", "unclear", "open"]
MINUS = "−"
_NONE_BETTER = "No iteration is better than the base model."


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the best iteration beats the base model.

    Attributes:
        headline: one sentence.
        detail: by how much, and how sure that is.
        iteration: of the best model, `layout.BASE` for the base model; None before an iteration is published.
        judged: the iteration that is held against the base model: the best, or where that is the base itself, the one
            with the lowest val_loss.
        judged_loss: its val_loss.
    """

    outcome: Outcome
    headline: str
    detail: str
    iteration: int | None = None
    judged: int | None = None
    base_loss: float | None = None
    judged_loss: float | None = None
    difference: Difference | None = None


def judge(history: History, differences: dict[int, Difference]) -> Verdict:
    """Judge the best of the published iterations.

    Args:
        history: of the run.
        differences: from the base model, by iteration.
    """
    if not history.base or not history.published:
        return Verdict("open", "No iteration is finished yet.", "The verdict comes with the first checkpoint.")
    best, base_loss = history.best, float(history.base.facts["val_loss"])
    losses = {
        it.number: float(it.published.facts["val_loss"])
        for it in history.published
        if it.published and it.published.facts["val_loss"] is not None
    }
    if not losses:
        return Verdict("worse", _NONE_BETTER, "No iteration's loss is finite.", best, base_loss=base_loss)
    judged = min(losses, key=lambda t: (losses[t], t)) if best is None or best == BASE else best
    difference, change = differences.get(judged), losses[judged] - base_loss
    direction = "fell" if change < 0 else "rose"
    where = f" in iteration {judged}, which comes closest" if best == BASE else ""
    loss = "The loss on held-out human answers"
    moved = f"{loss} {direction} from {base_loss:.3f} to {losses[judged]:.3f} nats a token{where}"
    if best == BASE and difference is not None:
        outcome: Outcome = "worse"
        detail = f"{moved}: {_interval(difference)}."
    elif difference is None:
        outcome = "better" if change < 0 and best != BASE else "worse"
        detail = f"{moved}. This run kept no losses of single answers, so how sure that is cannot be told."
    else:
        outcome = ("better" if difference.mean < 0 else "worse") if difference.is_clear else "unclear"
        detail = f"{moved}: {_interval(difference)}."
    headline = {
        "better": f"Iteration {best} is better than the base model.",
        "worse": _NONE_BETTER,
        "unclear": f"Iteration {best} is not clearly different from the base model.",
    }[outcome]
    return Verdict(outcome, headline, detail, best, judged, base_loss, losses[judged], difference)


def _interval(found: Difference) -> str:
    return (
        f"a change of {signed(found.mean)}, with a 95 % confidence interval from {signed(found.low)} to "
        f"{signed(found.high)} over {found.num_answers} answers"
    )


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign; a true minus."""
    return f"{'+' if value > 0 else MINUS if value < 0 else ''}{abs(value):.{digits}f}"


def percent(share: float) -> str:
    """A share in whole percent."""
    return f"{share * 100:.0f}\N{NO-BREAK SPACE}%"


def perplexity(loss: float) -> str:
    """exp(loss), in three significant digits."""
    return f"{math.exp(loss):,.3g}" if loss < 7 else f"{math.exp(min(loss, 700)):,.0f}"
