"""What came of a run, in one sentence and one number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from spin_components.report.history import History
from spin_components.report.interval import Difference

Outcome = Literal["better", "worse", "unclear", "open"]
MINUS = "−"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the best iteration beats the base model.

    Attributes:
        headline: one sentence.
        detail: by how much, and how sure that is.
        iteration: with the lowest val_loss; None before one is published.
    """

    outcome: Outcome
    headline: str
    detail: str
    iteration: int | None = None
    base_loss: float | None = None
    best_loss: float | None = None
    difference: Difference | None = None


def judge(history: History, differences: dict[int, Difference]) -> Verdict:
    """Judge the published iteration with the lowest val_loss.

    Args:
        history: of the run.
        differences: from the base model, by iteration.
    """
    if not history.base or not history.published:
        return Verdict("open", "No iteration is finished yet.", "The verdict comes with the first checkpoint.")
    losses = {it.number: float(it.published.facts["val_loss"]) for it in history.published if it.published}
    best = min(losses, key=lambda t: (losses[t], t))
    base_loss, difference = float(history.base.facts["val_loss"]), differences.get(best)
    change = losses[best] - base_loss
    direction = "fell" if change < 0 else "rose"
    moved = f"The loss on held-out human answers {direction} from {base_loss:.3f} to {losses[best]:.3f} nats a token"
    if difference is None:
        outcome: Outcome = "better" if change < 0 else "worse"
        detail = f"{moved}. This run kept no losses of single answers, so how sure that is cannot be told."
    else:
        outcome = ("better" if difference.mean < 0 else "worse") if difference.is_clear else "unclear"
        detail = (
            f"{moved}: a change of {signed(difference.mean)}, with a 95 % confidence interval from "
            f"{signed(difference.low)} to {signed(difference.high)} over {difference.num_answers} answers."
        )
    headline = {
        "better": f"Iteration {best} is better than the base model.",
        "worse": "No iteration is better than the base model.",
        "unclear": f"Iteration {best} is not clearly different from the base model.",
    }[outcome]
    return Verdict(outcome, headline, detail, best, base_loss, losses[best], difference)


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign; a true minus."""
    return f"{'+' if value > 0 else MINUS if value < 0 else ''}{abs(value):.{digits}f}"


def percent(share: float) -> str:
    """A share in whole percent."""
    return f"{share * 100:.0f}\N{NO-BREAK SPACE}%"


def perplexity(loss: float) -> str:
    """exp(loss), in three significant digits."""
    return f"{math.exp(loss):,.3g}" if loss < 7 else f"{math.exp(min(loss, 700)):,.0f}"
