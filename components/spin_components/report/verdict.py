"""Verdict on a run: whether its best iteration is better than the model that self-play began from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from spin_components.record.bootstrap import Difference, UnpairedDifference
from spin_components.record.controls import signed
from spin_components.record.decisions import name_of
from spin_components.record.history import History

VerdictKind = Literal["better", "worse", "unclear", "open"]


def _none_better(history: History) -> str:
    return f"No iteration is better than {name_of(history.start)}."


@dataclass(frozen=True, slots=True)
class Verdict:
    """Comparison of the best iteration with the reference of iteration 0: the base model, or the warm-up.

    Attributes:
        kind: result of the comparison; `open` if no iteration is finished.
        headline: the result in one sentence.
        detail: size and confidence interval of the change.
        iteration: iteration of the best model, `layout.BASE` or `WARM_UP`; None if no iteration is finished.
        compared: iteration that is compared with the first reference: the best one or, if that reference is the best,
            the one with the lowest val_loss.
        start_loss: val_loss of the first reference, nats per token.
        compared_loss: val_loss of the compared iteration, nats per token.
        difference: change of val_loss from the first reference to the compared iteration; None if unknown.
    """

    kind: VerdictKind
    headline: str
    detail: str
    iteration: int | None = None
    compared: int | None = None
    start_loss: float | None = None
    compared_loss: float | None = None
    difference: Difference | None = None


def compute_verdict(history: History, differences: dict[int, Difference]) -> Verdict:
    """Compare the best finished iteration with the model that self-play began from.

    Args:
        history: manifests of the run.
        differences: changes of val_loss from the first reference, by iteration.
    """
    if not history.start_check or not history.published:
        return Verdict("open", "No iteration is finished yet.", "The result appears after the first iteration.")
    best, start, start_loss = history.best, history.start, float(history.start_check.facts["val_loss"])
    losses = {
        it.number: float(it.published.facts["val_loss"])
        for it in history.published
        if it.published and it.published.facts["val_loss"] is not None
    }
    if not losses:
        return Verdict("worse", _none_better(history), "No iteration's loss is finite.", best, start_loss=start_loss)
    compared = min(losses, key=lambda t: (losses[t], t)) if best is None or best == start else best
    difference, change = differences.get(compared), losses[compared] - start_loss
    direction = "fell" if change < 0 else "rose"
    where = f" in iteration {compared}, the best one" if best == start else ""
    loss = "The loss on held-out human answers"
    moved = f"{loss} {direction} from {start_loss:.3f} to {losses[compared]:.3f} nats per token{where}"
    if best == start and difference is not None:
        kind: VerdictKind = "worse"
        detail = f"{moved}: {_interval(difference)}.{_about_drift(history, compared)}"
    elif difference is None:
        kind = "better" if change < 0 and best != start else "worse"
        detail = f"{moved}. This run stored no losses of single answers, so there is no confidence interval."
    else:
        kind = ("better" if difference.mean < 0 else "worse") if difference.is_clear else "unclear"
        detail = f"{moved}: {_interval(difference)}."
    headline = _headline(kind, best, history)
    detail += _about_warm_up(history)
    return Verdict(kind, headline, detail, best, compared, start_loss, losses[compared], difference)


def _headline(kind: VerdictKind, best: int | None, history: History) -> str:
    if kind == "better":
        return f"Iteration {best} is better than {name_of(history.start)}."
    if kind == "unclear":
        return f"Iteration {best} is not significantly different from {name_of(history.start)}."
    return _none_better(history)


def _about_warm_up(history: History) -> str:
    """What the warm-up did before, as a sentence; empty without one."""
    if not history.warm_up or not history.warm_up.published:
        return ""
    facts = history.warm_up.published.facts
    if facts["epoch"] is None:
        return " The warm-up lowered no loss, so self-play began from the base model."
    return f" The warm-up before it brought the loss from {facts['base_val_loss']:.3f} to {facts['val_loss']:.3f}."


def by_measure(
    history: History, verdict: Verdict, title: str, is_higher_better: bool, changes: dict[int, Difference]
) -> Verdict:
    """The verdict where `selection.measure` is not the loss of the human answers.

    Args:
        history: manifests of the run.
        verdict: by val_loss, whose detail is kept.
        title: the measure's name.
        is_higher_better: whether a higher value of it is better.
        changes: of the measure from the first reference, by iteration.
    """
    best = verdict.iteration
    if best is None or best == history.start:
        return replace(
            verdict, kind="worse", headline=_none_better(history), detail=f"{title} decides. {verdict.detail}"
        )
    change = changes.get(best)
    if change is None:
        kind: VerdictKind = "unclear"
        moved = f"Too few answers were measured to compare {title}."
    else:
        kind = ("better" if (change.mean > 0) == is_higher_better else "worse") if change.is_clear else "unclear"
        moved = f"{title} decides: {_interval(change)}."
    return replace(verdict, kind=kind, headline=_headline(kind, best, history), detail=f"{moved} {verdict.detail}")


def _about_drift(history: History, iteration: int) -> str:
    """Why an iteration of a lower loss is not better, as a sentence; empty unless it drifted."""
    facts = next((it.published.facts for it in history.published if it.published and it.number == iteration), {})
    return f" It has drifted: {facts['reason']}." if facts.get("outcome") == "drifted" else ""


def _interval(change: Difference) -> str:
    over = f"{change.num_answers} answers"
    if isinstance(change, UnpairedDifference):
        over = f"{change.num_answers} documents, by standard errors, not paired"
    return (
        f"a change of {signed(change.mean)}, with a 95 % confidence interval from {signed(change.low)} to "
        f"{signed(change.high)} over {over}"
    )


def percent(share: float) -> str:
    """Format a fraction in whole percent."""
    return f"{share * 100:.0f}\N{NO-BREAK SPACE}%"


def perplexity(loss: float) -> str:
    """Format exp(loss), the loss in nats per token, in three significant digits."""
    return f"{math.exp(loss):,.3g}" if loss < 7 else f"{math.exp(min(loss, 700)):,.0f}"
