"""How an attempt ended, from its events: their order does not depend on any machine's clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import Manifest
from spin_pipeline.runs.status import RunStatus, read_status

NOW = 1.8e9


def run_of(root: Path, *files: list[dict[str, Any]], is_done: bool = True, **attempt: Any) -> RunStatus:
    """The status of a run with these files of events."""
    run = LocalRun(root)
    run.write_json(layout.ATTEMPT, {"started": NOW, "deadline": None, **attempt})
    facts = {
        "iteration": 0,
        "checkpoint_uri": "x",
        "val_loss": 1.0,
        "num_pairs": 8,
        "work_s": 1.0,
        "acc": 0.5,
        "rewards_actual_mean": 0.0,
        "rewards_generated_mean": 0.0,
        "decision": "done" if is_done else "continue",
    }
    manifest = Manifest(step="checkpoint", inputs={}, facts=facts)
    run.write_json(layout.checkpoint(0), manifest.model_dump(mode="json"))
    for number, events in enumerate(files):
        lines = [json.dumps({"step": "generate", "iteration": 0, "shard": 0, **event}) for event in events]
        run.write(f"events/{number}.jsonl", ("\n".join(lines) + "\n").encode())
    return read_status(run.uri)


FAIL = {"kind": "fail", "error": "EngineError", "message": "no", "exit_code": 1}


@pytest.mark.parametrize("shift_s", [-600.0, 0.0, 600.0])
def test_a_finished_run_is_done_although_an_earlier_attempt_failed_at_a_later_time(
    tmp_path: Path, shift_s: float
) -> None:
    failed = [{"time": NOW + shift_s, "attempt": 1, **FAIL}]
    finished = [{"time": NOW + 1, "attempt": 2, "kind": "done", "facts": {}}]
    assert run_of(tmp_path, failed, finished, number=2).state == "done"


@pytest.mark.parametrize("shift_s", [-600.0, 600.0])
def test_a_failed_attempt_has_failed_whatever_its_clock_showed(tmp_path: Path, shift_s: float) -> None:
    done = [{"time": NOW, "attempt": 1, "kind": "done", "facts": {}}]
    failed = [{"time": NOW + shift_s, "attempt": 2, **FAIL}]
    status = run_of(tmp_path, done, failed, number=2)
    assert (status.state, status.exit_code) == ("failed", 1)
    assert status.failure and status.failure["message"] == "no"


def test_a_run_whose_last_event_lies_in_the_future_is_what_it_is(tmp_path: Path) -> None:
    events = [{"time": NOW * 2, "attempt": 1, "kind": "start"}, {"time": NOW * 2, "attempt": 1, "kind": "progress"}]
    assert run_of(tmp_path / "a", events, number=1).state == "done"
    assert run_of(tmp_path / "b", events, number=1, is_done=False).state == "interrupted"
    stopped = [*events, {"time": NOW, "attempt": 1, "kind": "stop", "reason": "max_time"}]
    assert run_of(tmp_path / "c", stopped, number=1, is_done=False).state == "stopped"


def test_a_step_that_failed_and_was_done_in_a_later_try_has_not_failed(tmp_path: Path) -> None:
    first = [{"time": NOW, "attempt": 1, "kind": "start"}, {"time": NOW + 1, "attempt": 1, **FAIL}]
    second: list[dict[str, Any]] = [
        {"time": NOW + 2, "attempt": 1, "kind": kind, "facts": {}} for kind in ("start", "done")
    ]
    assert run_of(tmp_path / "a", first, second, number=1).state == "done"
    of_another_shard = [{**event, "shard": 1} for event in second]
    assert run_of(tmp_path / "b", first, of_another_shard, number=1).state == "failed"


def test_events_without_numbers_are_taken_by_their_time(tmp_path: Path) -> None:
    assert run_of(tmp_path / "a", [{"time": NOW - 1, **FAIL}], [{"time": NOW, "kind": "start"}]).state == "done"
    assert run_of(tmp_path / "b", [{"time": NOW + 1, **FAIL}]).state == "failed"
