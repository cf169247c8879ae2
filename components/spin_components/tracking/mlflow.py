"""MLflow: one MLflow run for the whole run, gone on with by every step."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from spin_components.settings import Settings
from spin_components.store.run import RunStore
from spin_components.tracking.record import Record
from spin_components.tracking.trackers import Outcome, Point

_BATCH = 900
"""Metrics a request; the server takes 1000."""
_VALUE_CHARACTERS = 500
_STATUS = {"ended": "FINISHED", "failed": "FAILED"}


class MlflowTracker:
    """Logs to a server or a folder; what the server already has of a metric is not sent again.

    Who may write is told by MLflow's own variables (MLFLOW_TRACKING_USERNAME, …).
    """

    def __init__(self, run: RunStore, settings: Settings) -> None:
        # its own limits are minutes; a server that is back later is found by trying again
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        if settings.tracking.mlflow_uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # it would rather have a database
        from mlflow.tracking import MlflowClient

        wanted = settings.tracking
        target = {"uri": wanted.mlflow_uri, "experiment": wanted.mlflow_experiment}
        record = Record(run, "mlflow", target)
        self._client: Any = MlflowClient(wanted.mlflow_uri)
        self._last: dict[str, int] = {}
        if known := record.read().get("run_id"):
            self._run_id, self._is_new = str(known), False
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            self._run_id, self._is_new = self._create(run, settings), True
            record.write({"run_id": self._run_id})

    def _create(self, run: RunStore, settings: Settings) -> str:
        from mlflow.entities import Param

        name = settings.tracking.mlflow_experiment
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run_id = self._client.create_run(number, run_name=settings.run.name, tags={"spin.run_uri": run.uri}).info.run_id
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
        """The last step for which the server has a metric; -1 before the first."""
        if name not in self._last:
            known = [] if self._is_new else self._client.get_metric_history(self._run_id, name)
            self._last[name] = max((metric.step for metric in known), default=-1)
        return self._last[name]

    def flush(self) -> None:
        """Every request is answered when `log` returns."""

    def close(self, outcome: Outcome) -> None:
        if status := _STATUS.get(outcome):
            self._client.set_terminated(self._run_id, status=status)


def flat(settings: Settings) -> dict[str, Any]:
    """Each setting by its name, `section.key`, but for `[tracking]`."""
    sections = settings.model_dump(mode="json", exclude={"tracking"})
    return {f"{section}.{key}": value for section, table in sections.items() for key, value in table.items()}
