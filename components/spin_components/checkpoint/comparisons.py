"""Validation results of every model of a run, and paired comparisons of any two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

from spin_components.checkpoint.measured import Changes, Compare, Measured
from spin_components.data.shards import AnswerLoss, AnswerMeasures, read_rows
from spin_components.record.answer_measures import read_measures, values_of
from spin_components.record.bootstrap import Difference, paired_change, paired_difference
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import read_manifest


def measured(run: RunStore, epochs: Mapping[int, int], references: Mapping[int, int]) -> list[Measured]:
    """Validation results of models, in the order given.

    Args:
        run: the run.
        epochs: by iteration, the epoch whose policy it published; also of the base model (0) and of the warm-up.
        references: by iteration, the one that it was trained from.
    """
    models = []
    for iteration, epoch in epochs.items():
        facts = read_manifest(run, layout.validation(iteration, epoch)).facts
        models.append(
            Measured(
                iteration,
                facts["val_loss"],
                repetition_rate=facts.get("repetition_rate"),
                length_ratio=facts.get("length_ratio"),
                chrf=facts.get("greedy_chrf"),
                match=facts.get("greedy_match"),
                reference=references.get(iteration, layout.BASE),
            )
        )
    return models


def comparer(run: RunStore, epochs: Mapping[int, int], confidence: float) -> Compare:
    """A function that gives the paired change of val_loss between two models, by their iterations.

    Each file is read once.

    Args:
        run: the run.
        epochs: see `measured`.
        confidence: of the intervals.
    """

    @cache
    def losses(iteration: int) -> list[AnswerLoss]:
        epoch = epochs[iteration]
        made_by, key = layout.validation(iteration, epoch), layout.validation_losses(iteration, epoch)
        files = {key: read_manifest(run, made_by).outputs[key]}
        return read_rows(run.fetch(files, what="the validation losses", made_by=made_by) / key, AnswerLoss)

    @cache
    def compare(before: int, after: int) -> Difference | None:
        return paired_difference(losses(before), losses(after), confidence)

    return compare


def change_finder(run: RunStore, epochs: Mapping[int, int], confidence: float) -> Changes:
    """A function that gives the paired change of a measure of answers between two models, by their iterations.

    Models that an earlier release validated have none. Arguments as of `comparer`.
    """

    @cache
    def answers(iteration: int) -> list[AnswerMeasures]:
        return read_measures(run, iteration, epochs[iteration])

    @cache
    def changes(measure: str, before: int, after: int) -> Difference | None:
        return paired_change(values_of(answers(before), measure), values_of(answers(after), measure), confidence)

    return changes


def as_facts(change: Difference | None, against: int) -> dict[str, Any] | None:
    """A change as facts of a manifest; `against` is the iteration compared with, -1 the base model."""
    return {"against": against, **asdict(change)} if change else None
