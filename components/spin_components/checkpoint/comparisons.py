"""What was measured of every model of a run, and paired comparisons of any two, from the files of their validations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

from spin_components.algorithm.interval import Difference, paired_difference
from spin_components.checkpoint.selection import Compare, Measured
from spin_components.data.shards import AnswerLoss, read_rows
from spin_components.store import layout
from spin_components.store.manifests import read_manifest
from spin_components.store.run import RunStore


def measured(run: RunStore, epochs: Mapping[int, int]) -> list[Measured]:
    """The base model, then every iteration, as validated.

    Args:
        run: the run.
        epochs: which epoch's policy each iteration published.
    """
    found = []
    for iteration, epoch in {layout.BASE: 0, **epochs}.items():
        facts = read_manifest(run, layout.validation(iteration, epoch)).facts
        found.append(Measured(iteration, facts["val_loss"], facts.get("repetition_rate"), facts.get("length_ratio")))
    return found


def comparer(run: RunStore, epochs: Mapping[int, int], confidence: float) -> Compare:
    """Gives the paired change of val_loss between two models, by their iterations; each file is read once.

    Args:
        run: the run.
        epochs: which epoch's policy each iteration published.
        confidence: of the intervals.
    """

    @cache
    def losses(iteration: int) -> list[AnswerLoss]:
        place = iteration, {layout.BASE: 0, **epochs}[iteration]
        made_by, key = layout.validation(*place), layout.validation_losses(*place)
        files = {key: read_manifest(run, made_by).outputs[key]}
        return read_rows(run.fetch(files, what="the validation losses", made_by=made_by) / key, AnswerLoss)

    @cache
    def compare(before: int, after: int) -> Difference | None:
        return paired_difference(losses(before), losses(after), confidence)

    return compare


def as_facts(change: Difference | None, against: int) -> dict[str, Any] | None:
    """A change as a manifest has it; `against` is the iteration it is held against, -1 the base model."""
    return {"against": against, **asdict(change)} if change else None
