"""Results of evaluations as measures that decide: a model's judge score or metric of a task, and changes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spin_components.data.shards import DocumentValue, Judgment, read_rows
from spin_components.record.bootstrap import Difference, paired_change, unpaired_change
from spin_components.settings.selection import HELD_OUT_MEASURES, JUDGE, MIN_MEASURED, task_measure
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import Manifest, read_manifest


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A model's value of a measure of the evaluation.

    Attributes:
        title: name for people.
        mean: over answers or documents, or the metric of the whole task.
        stderr: its standard error; None if unknown.
        num: of answers or documents.
        higher_is_better: None where the harness does not say.
        values: by index, of each answer or document; empty where they are unknown, or the metric is not their mean.
    """

    title: str
    mean: float
    stderr: float | None
    num: int
    higher_is_better: bool | None
    values: Mapping[int, float] = field(default_factory=dict)


def title_of(measure: str) -> str:
    """A measure's name for people."""
    task, metric = task_measure(measure)
    return f"{task} {metric}".strip() or {JUDGE: "judge score", "nll": "val_loss"}.get(measure, measure)


def read_evaluated(run: RunStore, iteration: int, measure: str) -> Evaluated | None:
    """A model's value of a measure of the evaluation; None where it was not evaluated by it.

    Args:
        run: the run.
        iteration: of the model, as for `layout.evaluation`.
        measure: see `SelectionSettings.measure`.

    Raises:
        IntegrityError: a file of the evaluation is missing or altered.
    """
    key = layout.evaluation(iteration)
    if measure in HELD_OUT_MEASURES or not run.exists(key):
        return None
    manifest = read_manifest(run, key)
    if measure == JUDGE:
        return _judged(run, iteration, manifest)
    return _of_task(run, iteration, manifest, measure)


def change_of(before: Evaluated, after: Evaluated, confidence: float) -> Difference | None:
    """The change of a measure between two models; None where it has no interval.

    It is paired by answer or document where those are known of both, and has the interval of their standard errors, as
    of independent values, otherwise.
    """
    if before.values and after.values:
        return paired_change(before.values, after.values, confidence)
    num = min(before.num, after.num)
    if before.stderr is None or after.stderr is None or num < MIN_MEASURED:
        return None
    return unpaired_change((before.mean, before.stderr), (after.mean, after.stderr), num, confidence)


def find_metric(results: Mapping[str, Any], measure: str) -> tuple[str, Mapping[str, Any]] | None:
    """The metric that a measure names among the results of tasks, by its name; None where there is none."""
    task, metric = task_measure(measure)
    metrics: Mapping[str, Any] = results.get(task, {}).get("metrics", {})
    name = metric or next(iter(metrics), "")
    return (name, metrics[name]) if name in metrics else None


def _judged(run: RunStore, iteration: int, manifest: Manifest) -> Evaluated | None:
    facts, key = manifest.facts.get("judge", {}), layout.judge_scores(iteration)
    if "mean" not in facts:
        return None
    made_by = layout.evaluation(iteration)
    folder = run.fetch({key: manifest.outputs[key]}, what="the judge's scores", made_by=made_by)
    rows = read_rows(folder / key, Judgment)
    values = {row.index: row.score for row in rows if row.score is not None}
    mean, num = float(facts["mean"]), int(facts["num_scored"])
    return Evaluated(title_of(JUDGE), mean, facts["stderr"], num, higher_is_better=True, values=values)


def _of_task(run: RunStore, iteration: int, manifest: Manifest, measure: str) -> Evaluated | None:
    task, results = task_measure(measure)[0], manifest.facts.get("tasks", {}).get("results", {})
    found = find_metric(results, measure)
    if found is None or found[1]["value"] is None:
        return None
    metric, figure = found
    key, values = layout.document_values(iteration), dict[int, float]()
    if key in manifest.outputs:
        made_by = layout.evaluation(iteration)
        folder = run.fetch({key: manifest.outputs[key]}, what="the documents' metrics", made_by=made_by)
        rows = read_rows(folder / key, DocumentValue)
        values = {row.index: row.value for row in rows if (row.task, row.metric) == (task, metric)}
    return Evaluated(
        f"{task} {metric}",
        float(figure["value"]),
        figure["stderr"],
        int(results[task]["num_documents"] or 0),
        figure.get("higher_is_better"),
        values,
    )
