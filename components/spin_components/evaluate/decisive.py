"""Checks that an evaluation can decide: enough answers or documents, and a metric that the task has."""

from __future__ import annotations

from collections.abc import Sequence

from spin_components.data.shards import Judgment
from spin_components.errors import ConfigError, EngineError
from spin_components.evaluate.models import Published
from spin_components.record.decisions import name_of
from spin_components.record.evaluated import read_evaluated
from spin_components.settings.attempt import EvaluationSettings
from spin_components.settings.selection import JUDGE, MIN_MEASURED, task_measure
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import read_manifest


def check_scores(scores: Sequence[Judgment], evaluation: EvaluationSettings) -> None:
    """Refuse too few scores to compare; raises EngineError."""
    num_scored = sum(each.score is not None for each in scores)
    if num_scored < MIN_MEASURED:
        raise EngineError(
            f"the judge {evaluation.judge_model} at {evaluation.judge_url} gave {num_scored} of {len(scores)} answers "
            f"a score from 1 to 10, expected at least {MIN_MEASURED}; check it, or use another evaluation.judge_model"
        )


def check_decisive(run: RunStore, model: Published, measure: str) -> None:
    """Refuse an evaluation that gives a measure no value, or none that can be compared.

    Args:
        run: the run.
        model: whose evaluation is finished.
        measure: one of the evaluation.

    Raises:
        ConfigError: the task has no such metric, or too few documents; or it is not known what is better.
    """
    if read_manifest(run, layout.validation(model.iteration, model.epoch)).facts["val_loss"] is None:
        return  # which decides
    key = layout.evaluation(model.iteration)
    found, (task, metric) = read_evaluated(run, model.iteration, measure), task_measure(measure)
    if found is None:
        facts = read_manifest(run, key).facts.get("tasks", {})
        known = [f"{name}/{each}" for name, table in facts.get("results", {}).items() for each in table["metrics"]]
        raise ConfigError(
            f"{name_of(model.iteration)} has no finite {metric or 'metric'} of {task}, only "
            f"{', '.join(known) or facts.get('skipped', 'none')}; set selection.measure to task:NAME/METRIC with a "
            "metric that is there, or to another measure"
        )
    if found.num < MIN_MEASURED:
        more = f"delete {run.uri_of(key)} to ask it again" if measure == JUDGE else "raise evaluation.limit"
        raise ConfigError(
            f"{found.title} has {found.num} values, expected at least {MIN_MEASURED} to compare models by; {more}, or "
            "set another selection.measure"
        )
    if found.higher_is_better is None:
        raise ConfigError(
            f"lm-evaluation-harness does not say whether a higher {found.title} is better; name another metric in "
            "selection.measure, as task:NAME/METRIC"
        )
