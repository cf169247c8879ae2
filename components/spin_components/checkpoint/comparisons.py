"""Validation and evaluation results of every model of a run, and comparisons of any two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

from spin_components.checkpoint.measured import Changes, Compare, Measured
from spin_components.data.shards import AnswerLoss, AnswerMeasures, read_rows
from spin_components.errors import ConfigError, IntegrityError
from spin_components.record.answer_measures import COLUMNS, read_measures, values_of
from spin_components.record.bootstrap import Difference, UnpairedDifference, paired_change, paired_difference
from spin_components.record.decisions import name_of
from spin_components.record.evaluated import Evaluated, change_of, read_evaluated
from spin_components.settings.selection import HELD_OUT_MEASURES
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import read_manifest


def measured(
    run: RunStore, epochs: Mapping[int, int], references: Mapping[int, int], measure: str = "nll"
) -> list[Measured]:
    """Validation results of models, in the order given, and what an evaluation that decides gave.

    Args:
        run: the run.
        epochs: by iteration, the epoch whose policy it published; also of the base model (0) and of the warm-up.
        references: by iteration, the one that it was trained from.
        measure: that decides.

    Raises:
        IntegrityError: a model with a finite loss has no value of a measure of the evaluation: nothing is guessed.
        ConfigError: it is not known whether a higher value is better.
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
                evaluated=_evaluated(run, iteration, measure, is_needed=facts["val_loss"] is not None),
            )
        )
    return models


def _evaluated(run: RunStore, iteration: int, measure: str, *, is_needed: bool) -> Evaluated | None:
    if measure in HELD_OUT_MEASURES:
        return None
    found, where = read_evaluated(run, iteration, measure), run.uri_of(layout.evaluation(iteration))
    if found is None and is_needed:
        raise IntegrityError(
            f"{where}: {name_of(iteration)} has no result by {measure}, which decides (selection.measure); run the "
            "same command again"
        )
    if found and found.higher_is_better is None:
        raise ConfigError(
            f"{where} does not say whether a higher {found.title} is better, so selection.measure = {measure!r} cannot "
            "decide; name another metric as task:NAME/METRIC. If an earlier release evaluated, delete that file, to "
            "have the model evaluated again"
        )
    return found


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
    """A function that gives the change of a measure of answers or of the evaluation between two models.

    It takes the measure and the models' iterations. Models that an earlier release validated have no measures of
    answers. Arguments as of `comparer`.
    """

    @cache
    def answers(iteration: int) -> list[AnswerMeasures]:
        return read_measures(run, iteration, epochs[iteration])

    @cache
    def evaluated(measure: str, iteration: int) -> Evaluated | None:
        return read_evaluated(run, iteration, measure)

    @cache
    def changes(measure: str, before: int, after: int) -> Difference | None:
        if measure not in COLUMNS:
            first, second = evaluated(measure, before), evaluated(measure, after)
            return change_of(first, second, confidence) if first and second else None
        return paired_change(values_of(answers(before), measure), values_of(answers(after), measure), confidence)

    return changes


def as_facts(change: Difference | None, against: int) -> dict[str, Any] | None:
    """A change as facts of a manifest; `against` is the iteration compared with, -1 the base model."""
    if change is None:
        return None
    paired = {"is_paired": False} if isinstance(change, UnpairedDifference) else {}
    return {"against": against, **asdict(change), **paired}
