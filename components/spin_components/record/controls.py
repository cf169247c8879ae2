"""Comparisons of iterations with their controls: did self-play do better than as many updates of fine-tuning?"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from spin_components.data.shards import AnswerLoss, read_rows
from spin_components.record.answer_measures import COLUMNS, read_measures, values_of
from spin_components.record.bootstrap import Difference, UnpairedDifference, paired_change, paired_difference
from spin_components.record.decisions import word_of
from spin_components.record.evaluated import change_of, read_evaluated, title_of
from spin_components.record.history import History
from spin_components.store.base import RunStore
from spin_components.store.manifests import Manifest

MINUS = "−"
_NAMES = {
    "chrf": "chrF of greedy answers",
    "match": "match of greedy answers",
    "ended": "answers that end by themselves",
    "repetition": "repeated 4-grams",
}
_LOWER_IS_BETTER = ("val_loss", "repetition")


@dataclass(frozen=True, slots=True)
class Controlled:
    """An iteration and its control, on the same held-out prompts.

    Attributes:
        iteration: t.
        num_steps: optimizer steps of the control and of those before it.
        spin_steps: optimizer steps of the run up to the iteration's end.
        changes: paired changes from the control to the iteration, by `val_loss`, the measures of
            `record.answer_measures`, and the measure of the evaluation that decides, if any; those that are known.
        falling: names of those of the evaluation of which lower is better.
    """

    iteration: int
    num_steps: int
    spin_steps: int
    changes: dict[str, Difference]
    falling: tuple[str, ...] = ()

    def verdict(self, name: str) -> str:
        """Whether self-play did better than the control by a measure of `changes`."""
        return verdict_of(name, self.changes[name], self.falling)

    @property
    def sentence(self) -> str:
        """By which measures self-play did better than the control, worse, or neither."""
        words: dict[str, list[str]] = {}
        for name, change in self.changes.items():
            words.setdefault(self.verdict(name), []).append(f"{name_of_measure(name)} {interval(change)}")
        if not words:
            return f"Too few answers are known to compare iteration {self.iteration} with its control."
        as_many = f"as many ({self.num_steps})" if self.num_steps == self.spin_steps else str(self.num_steps)
        better, worse = (", ".join(words.get(word, [])) for word in ("better", "worse"))
        if better:
            verdict = f"did better by {better}, {f'but worse by {worse}' if worse else 'and worse by no measure'}"
        else:
            verdict = f"did worse by {worse}, and better by no measure" if worse else "did neither better nor worse"
        unclear = words.get(word_of("unclear"), [])
        rest = f"; {word_of('unclear')}: {', '.join(unclear)}" if unclear else ""
        steps = "" if self.num_steps == self.spin_steps else f"({self.spin_steps} updates) "
        return (
            f"Against {as_many} updates of supervised fine-tuning, self-play up to iteration {self.iteration} "
            f"{steps}{verdict}{rest}."
        )


def name_of_measure(name: str) -> str:
    """A measure's name in sentences, by its name in `Controlled.changes`."""
    return _NAMES.get(name) or title_of(name)


def verdict_of(name: str, change: Difference, falling: Collection[str] = ()) -> str:
    """Whether a change of a measure is for the better, for the worse, or not clear.

    Args:
        name: of the measure.
        change: of it.
        falling: names of measures of the evaluation of which lower is better.
    """
    rose = (change.mean > 0) == (name not in _LOWER_IS_BETTER and name not in falling)
    return ("better" if rose else "worse") if change.is_clear else word_of("unclear")


def verdicts(changes: Mapping[str, Difference | None], falling: Collection[str] = ()) -> list[str]:
    """The verdict of each measure that is known, with its change and interval; arguments as of `verdict_of`."""
    return [
        f"{name_of_measure(name)} {interval(change)}, {verdict_of(name, change, falling)}"
        for name, change in changes.items()
        if change
    ]


def interval(change: Difference) -> str:
    """A change with its interval, e.g. `+0.100 (−0.100 to +0.300)`."""
    how = ", by standard errors, not paired" if isinstance(change, UnpairedDifference) else ""
    return f"{signed(change.mean)} ({signed(change.low)} to {signed(change.high)}{how})"


def signed(value: float, digits: int = 3) -> str:
    """Format a number with its sign, with U+2212 as minus."""
    return f"{'+' if value > 0 else MINUS if value < 0 else ''}{abs(value):.{digits}f}"


def compare_controls(run: RunStore, history: History) -> list[Controlled]:
    """Compare every published iteration with its control, where that is validated.

    Raises:
        IntegrityError: a file of a validation is missing or altered.
    """
    compared, num_steps = [], 0
    for iteration in history.published:
        control = history.controls.get(iteration.number)
        if control is None or control.published is None or iteration.published is None:
            break
        num_steps += int(control.published.facts["num_steps"])
        facts = iteration.published.facts
        if control.check is None or (check := iteration.check) is None:
            continue
        confidence = float(facts.get("confidence", 0.95))
        losses = paired_difference(_losses(run, control.check), _losses(run, check), confidence)
        before, after = (read_measures(run, each.number, each.published_epoch or 0) for each in (control, iteration))
        changes = {"val_loss": losses} | {
            name: paired_change(values_of(before, name), values_of(after, name), confidence) for name in COLUMNS
        }
        own, other = (read_evaluated(run, each.number, history.measure) for each in (control, iteration))
        if own and other:
            changes[history.measure] = change_of(own, other, confidence)
        falling = (history.measure,) if other and other.higher_is_better is False else ()
        known = {name: change for name, change in changes.items() if change}
        compared.append(Controlled(iteration.number, num_steps, int(facts["step"]), known, falling))
    return compared


def _losses(run: RunStore, check: Manifest) -> list[AnswerLoss]:
    key = next(key for key in check.outputs if key.endswith("validation.parquet"))
    return read_rows(run.fetch({key: check.outputs[key]}, what="the validation losses") / key, AnswerLoss)
