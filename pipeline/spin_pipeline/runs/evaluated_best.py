"""Evaluations of the best models of several runs, for their comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spin_components.record.bootstrap import LEVEL, Difference
from spin_components.record.evaluated import Evaluated, change_of, read_evaluated
from spin_components.record.history import History
from spin_components.settings.selection import JUDGE
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import read_manifest


@dataclass(frozen=True, slots=True)
class EvaluatedBest:
    """A best model's value of the measure that decides, and what it was evaluated with."""

    measure: str
    value: Evaluated
    inputs: dict[str, Any]

    @property
    def falling(self) -> tuple[str, ...]:
        """The measure, where lower is better."""
        return (self.measure,) if self.value.higher_is_better is False else ()


def evaluated_best(run: RunStore, history: History) -> EvaluatedBest | None:
    """The evaluation of a run's best model by what decides; None where that is no measure of the evaluation."""
    if history.best is None or (value := read_evaluated(run, history.best, history.measure)) is None:
        return None
    part = "judge" if history.measure == JUDGE else "tasks"
    inputs = read_manifest(run, layout.evaluation(history.best)).inputs[part]
    own = ("policy", "samples", "precision")  # which differ between models
    return EvaluatedBest(history.measure, value, {name: each for name, each in inputs.items() if name not in own})


def evaluated_change(first: EvaluatedBest | None, other: EvaluatedBest | None) -> Difference | None:
    """The change between runs that were evaluated alike; None for others."""
    if not first or not other or (first.measure, first.inputs) != (other.measure, other.inputs):
        return None
    return change_of(first.value, other.value, LEVEL)
