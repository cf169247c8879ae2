"""The result of a whole run as KFP artifacts: one row a run where the Kubeflow UI compares runs."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from spin_components.record.attempts import last_failures, newest_attempt_of
from spin_components.record.decisions import goes_on, name_of, word_of
from spin_components.record.pointers import read_pointer
from spin_components.runtime.kfp_artifacts import describe, describe_model, errors_logged, fill_from, log
from spin_components.runtime.step import is_optional
from spin_components.settings.selection import SelectionSettings
from spin_components.store import layout
from spin_components.store.addresses import filled_in
from spin_components.store.base import RunStore
from spin_components.store.lease import RUNNER
from spin_components.store.manifests import read_manifest

logger = logging.getLogger(__name__)

_UNREADABLE = "unknown: the run's storage cannot be read; see this task's log"
_NOTHING = "nothing: the run has not begun; see the log of prepare"


def show_result(model: Any, metrics: Any, report: Any, run_uri: str, attempt: str, created: str) -> str:
    """Describe the best model, log the final metrics and copy the final report, as far as the run came.

    Args:
        model: artifact of the best model, which may be the base model.
        metrics: artifact of the final metrics.
        report: artifact of the report.
        run_uri: the run's address, with its placeholders.
        attempt: KFP's id of the run.
        created: when KFP created it.

    Returns: how the run ended, in a sentence; empty on one machine, which shows no artifacts.
    """
    if RUNNER in os.environ:
        return ""
    outcome = [_UNREADABLE]

    def fill(run: RunStore) -> None:
        if not run.exists(layout.ATTEMPT):
            outcome[0] = _NOTHING
            return
        checkpoints = [read_manifest(run, key).facts for key in run.list("iterations", "*/checkpoint.json")]
        checkpoints.sort(key=lambda facts: int(facts["iteration"]))
        outcome[0] = outcome_of(run, checkpoints)
        if page := run.read(layout.REPORT):
            Path(report.path).write_bytes(page)
        is_measured = run.exists(layout.BASE_VALIDATION)
        base = read_manifest(run, layout.BASE_VALIDATION).facts["val_loss"] if is_measured else None
        if not checkpoints:
            log(metrics, {"1_val_loss": base, "base_val_loss": base, "num_iterations": 0})
            return
        best = read_pointer(run, layout.BEST)
        if best["iteration"] > layout.BASE:
            describe_model(model, run, checkpoints[best["iteration"]], ended=outcome[0])
        else:
            at = {"iteration": best["iteration"], "val_loss": best["val_loss"], "run": run.uri}
            describe(model, uri=best["uri"], **at, ended=outcome[0])
        names = ("acc", "spin_margin", "consumed_samples")
        log(
            metrics,
            {
                "1_val_loss": best["val_loss"],
                "base_val_loss": base,
                "best_iteration": best["iteration"],
                "num_iterations": len(checkpoints),
                "last_val_loss": checkpoints[-1]["val_loss"],
                **{f"last_{name}": checkpoints[-1].get(name) for name in names},
            },
        )

    with errors_logged():
        fill_from(filled_in(run_uri, attempt, created, what="run_uri"), run_uri, fill)
    logger.info("%s", outcome[0])
    return outcome[0]


def outcome_of(run: RunStore, checkpoints: list[dict[str, Any]]) -> str:
    """How the newest attempt at a run ended, in a sentence.

    Args:
        run: the run, of which an attempt has begun.
        checkpoints: facts of the published iterations, in order.
    """
    events = newest_attempt_of(run)
    failures = last_failures(events)
    again = f"a run with run_uri = {run.uri} goes on"
    rules = SelectionSettings.model_validate(run.read_json(layout.ATTEMPT).get("selection", {}))
    for event in reversed(failures):
        if not is_optional(event["step"], event.get("iteration"), decides=rules.waits_for_evaluation):
            return f"failed in {_place(event)}: {event['error']}: {event['message']}"
    if stops := [event for event in events if event["kind"] == "stop"]:
        return f"stopped in {_place(stops[-1])}: {stops[-1]['reason']}; {again}"
    if not checkpoints or goes_on(checkpoints[-1]["decision"]):
        return f"interrupted before the end; {again}"
    best = read_pointer(run, layout.BEST)
    end = f"{word_of(checkpoints[-1]['decision'])} after iteration {checkpoints[-1]['iteration']}; the best is "
    end += f"{name_of(best['iteration'])}, val_loss {best['val_loss']}"
    return end + "".join(
        f"; failed in {_place(event)}: {event['error']}: {event['message']}" for event in failures[-1:]
    )


def _place(event: dict[str, Any]) -> str:
    """A step with its iteration, epoch and shard."""
    labels = [f"{name} {event[name]}" for name in ("iteration", "epoch", "shard") if event.get(name, -1) > -1]
    return " ".join([event["step"], *labels])
