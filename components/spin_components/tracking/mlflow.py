"""MLflow tracker: an MLflow run for each branch of a run, continued by every step."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from spin_components.settings.settings import Settings
from spin_components.store.base import RunStore
from spin_components.tracking.tracker import AttemptState, Branch, Point, TrackerState, flat, run_name

_BATCH = 900
"""Metrics per request; the server accepts at most 1000."""


_VALUE_CHARACTERS = 500


_STATUS = {"ended": "FINISHED", "failed": "FAILED"}


class MlflowTracker:
    """Logs to an MLflow server or folder, and skips steps that it already has.

    Credentials come from MLflow's own variables (MLFLOW_TRACKING_USERNAME, …).
    """

    def __init__(self, run: RunStore, settings: Settings, branch: Branch) -> None:
        # MLflow's own timeouts are minutes; `Trackers` retries instead
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        if settings.tracking.mlflow_uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions refuse a file store without this
        from mlflow.tracking import MlflowClient

        tracking = settings.tracking
        target = {"uri": tracking.mlflow_uri, "experiment": tracking.mlflow_experiment}
        tracker_state = TrackerState(run, "mlflow", target, branch)
        self._client: Any = MlflowClient(tracking.mlflow_uri)
        self._last: dict[str, int] = {}
        if stored := tracker_state.read().get("run_id"):
            self._run_id, self._is_new = str(stored), False
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            self._run_id, self._is_new = self._create(run, settings, branch), True
            tracker_state.write({"run_id": self._run_id})

    def _create(self, run: RunStore, settings: Settings, branch: Branch) -> str:
        from mlflow.entities import Param

        name = settings.tracking.mlflow_experiment
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        tags = {"spin.run_uri": run.uri, "spin.branch": branch}
        run_id = self._client.create_run(number, run_name=run_name(settings, branch), tags=tags).info.run_id
        params = [Param(key, str(value)[:_VALUE_CHARACTERS]) for key, value in flat(settings).items()]
        self._client.log_batch(run_id, params=params)
        return str(run_id)

    def log(self, points: Collection[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, float(value), int(point.time * 1000), point.step)
            for point in points
            for name, value in point.values.items()
            if point.step > self._last_step(name)
        ]
        for start in range(0, len(metrics), _BATCH):
            batch = metrics[start : start + _BATCH]
            self._client.log_batch(self._run_id, metrics=batch)
            self._last |= {metric.key: metric.step for metric in batch}

    def _last_step(self, name: str) -> int:
        """The last step for which the server has a metric; -1 if it has none."""
        if name not in self._last:
            stored = [] if self._is_new else self._client.get_metric_history(self._run_id, name)
            self._last[name] = max((metric.step for metric in stored), default=-1)
        return self._last[name]

    def flush(self) -> None:
        """Do nothing: `log` waits for the server's response."""

    def close(self, state: AttemptState) -> None:
        if status := _STATUS.get(state):
            self._client.set_terminated(self._run_id, status=status)
