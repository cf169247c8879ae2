"""Data of the report's charts."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin_components.data.shards import AnswerLoss, read_rows
from spin_components.record.answer_measures import COLUMNS, read_measures, values_of
from spin_components.record.bootstrap import LEVEL, Difference, paired_change, paired_difference
from spin_components.record.evaluated import change_of, read_evaluated, title_of
from spin_components.record.history import History
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import Manifest


def min_max(values: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """Return indices of the minimum and maximum of each of `most // 2` parts of a series, and of both ends.

    Args:
        values: (N,), finite.
        most: maximum number of indices, not counting the ends; if N or more, all are returned.

    Returns: indices in ascending order.
    """
    if len(values) <= most:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), most // 2 + 1).astype(np.int64)
    kept = {0, len(values) - 1}
    for start, end in pairwise(edges):
        part = values[start:end]
        kept |= {int(start + part.argmin()), int(start + part.argmax())}
    return np.array(sorted(kept), dtype=np.int64)


def evenly(num: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` evenly spaced indices of 0 … num - 1, including the first and the last."""
    return np.unique(np.linspace(0, num - 1, min(num, most)).round().astype(np.int64)) if num else np.arange(0)


STEP_METRICS = ("loss", "acc", "rewards_actual_mean", "rewards_generated_mean", "lr", "grad_norm")
ADVANTAGES = ("current_advantage_mean", "historical_advantage_mean")
"""Metrics of the loss "triplet" alone; steps without a third answer have no historical one."""
MOST_POINTS = 800
"""Maximum number of points of one line; see `min_max`."""


def read_steps(run: RunStore, history: History) -> list[dict[str, Any]]:
    """Read the metrics of every optimizer step of the finished epochs, in order."""
    rows: list[dict[str, Any]] = []
    for iteration in history.iterations:
        for epoch in iteration.epochs:
            key = f"{layout.epoch(iteration.number, epoch.number)}/metrics.json"
            made_by = layout.epoch_manifest(iteration.number, epoch.number)
            folder = run.fetch({key: epoch.trained.outputs[key]}, what="the metrics", made_by=made_by)
            rows += json.loads((folder / key).read_text("utf-8"))["steps"]
    return rows


def step_series(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return each metric by step, decimated; the margin is the difference of the two rewards.

    A line of `ADVANTAGES` that no step has is left out.
    """
    starts: dict[int, int] = {}
    for row in rows:
        starts.setdefault(row["iteration"], row["step"])
    lines = {name: [float(row[name]) for row in rows] for name in STEP_METRICS}
    pairs = zip(lines["rewards_actual_mean"], lines["rewards_generated_mean"], strict=True)
    lines["margin"] = [actual - generated for actual, generated in pairs]
    steps = np.array([row["step"] for row in rows], dtype=np.int64)
    first = np.searchsorted(steps, list(starts.values()))
    ends = np.concatenate([first, first[1:] - 1]).astype(np.int64)
    series = {}
    for name, line in lines.items():
        kept = np.union1d(min_max(np.array(line), MOST_POINTS), ends)
        series[name] = _line(steps[kept], np.array(line)[kept])
    for name in ADVANTAGES:
        if has := [row for row in rows if name in row]:
            values = np.array([float(row[name]) for row in has])
            kept = min_max(values, MOST_POINTS)
            series[name] = _line(np.array([row["step"] for row in has], dtype=np.int64)[kept], values[kept])
    return {"total": len(rows), "starts": [{"iteration": t, "step": step} for t, step in starts.items()], **series}


def _line(steps: NDArray[np.int64], values: NDArray[np.float64]) -> dict[str, Any]:
    """A line of a chart, its values rounded to six digits."""
    return {"x": steps.tolist(), "y": [float(f"{value:.6g}") for value in values.tolist()]}


def unlearnt_loss(objective: dict[str, Any]) -> dict[str, Any] | None:
    """Return the loss of a policy that equals its reference; None if it depends on the pairs."""
    if objective.get("sft_weight") or objective.get("base_weight") or objective.get("loss") in ("sft", "triplet"):
        return None
    if objective.get("loss", "logistic") == "logistic":
        return {"y": math.log(2), "label": "ln 2: policy equals reference"}
    if objective["loss"] == "nce":  # `algorithm.loss.nce_losses` at rewards of 0
        mu = objective["mu"]
        value = math.log1p(mu) + mu * math.log1p(1 / mu)
        return {"y": value, "label": f"{value:.4g}: policy equals reference"}
    return {"y": 1.0, "label": "1: policy equals reference"}


def read_losses(run: RunStore, check: Manifest) -> list[AnswerLoss]:
    """Read the losses of single held-out answers of a validation; empty if it stored none."""
    key = next((key for key in check.outputs if key.endswith("validation.parquet")), None)
    if key is None:
        return []
    files = {key: check.outputs[key]}
    return read_rows(run.fetch(files, what="the validation losses") / key, AnswerLoss)


def validation_points(run: RunStore, history: History) -> list[dict[str, Any]]:
    """Return for each validated epoch its loss, None if not finite, and its `Difference` from the first reference."""
    start = read_losses(run, history.start_check) if history.start_check else []
    points = []
    for iteration in history.iterations:
        chosen = iteration.published.facts["epoch"] if iteration.published else None
        for epoch in iteration.epochs:
            if epoch.check:
                losses = read_losses(run, epoch.check)
                points.append(
                    {
                        "iteration": iteration.number,
                        "epoch": epoch.number,
                        "val_loss": epoch.check.facts["val_loss"],
                        "difference": paired_difference(start, losses) if start and losses else None,
                        "published": epoch.number == chosen,
                    }
                )
    return points


def published_differences(points: list[dict[str, Any]]) -> dict[int, Difference]:
    """Return the differences of the published epochs from the first reference, by iteration."""
    return {point["iteration"]: point["difference"] for point in points if point["published"] and point["difference"]}


def measure_differences(run: RunStore, history: History) -> tuple[str, bool, dict[int, Difference]]:
    """Changes of the measure that decides from the first reference to the published epochs.

    Returns: the measure's name for people, whether higher is better, and the changes by iteration. They are empty
        where val_loss decides, see `published_differences`.
    """
    measure, title, is_higher_better = history.measure, title_of(history.measure), True
    published = {it.number: it.published for it in history.published if it.published}
    changes: dict[int, Difference | None] = {}
    if measure in COLUMNS and history.start_check:
        epoch = (history.warm_up.published_epoch if history.warm_up else None) or 0
        start = values_of(read_measures(run, history.start, epoch), measure)
        title = f"{title} of greedy answers"
        for t, manifest in published.items():
            answers = read_measures(run, t, int(manifest.facts["epoch"]))
            changes[t] = paired_change(start, values_of(answers, measure))
    elif before := read_evaluated(run, history.start, measure):
        title, is_higher_better = before.title, before.higher_is_better is not False
        for t in published:
            after = read_evaluated(run, t, measure)
            changes[t] = change_of(before, after, LEVEL) if after else None
    return title, is_higher_better, {t: change for t, change in changes.items() if change}
