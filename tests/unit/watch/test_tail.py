"""How long `watch` waits for a run without events; the clock advances only by its pauses."""

from __future__ import annotations

import json
import os
from itertools import groupby
from pathlib import Path

import pytest

from clock import Clock
from spin_components.store import layout, lease
from spin_components.store.local import LocalRun
from spin_pipeline.watch import tail

NOW = 1.8e9
POLL_S = LocalRun.poll_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(NOW)
    for module in (tail, lease):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(LocalRun, "now", lambda run: clock.now)
    return clock


def begun(root: Path, *, host: str | None = None, **ending: str) -> LocalRun:
    """A run whose `prepare` began just now, and ended so if it did; held from another machine if one is named."""
    run = LocalRun(root)
    run.write_json(layout.ATTEMPT, {"started": NOW, "deadline": None})
    events = [{"time": NOW, "kind": "start", "step": "prepare", "pid": 1}]
    if ending:
        events.append({"time": NOW, "step": "prepare", **ending})
    run.write(f"{layout.EVENTS}/a.jsonl", "".join(f"{json.dumps(event)}\n" for event in events).encode())
    if host:
        held = lease.Lease(owner="a", host=host, process="7:7", renewed_at=NOW, duration_s=100.0)
        run.write_json(layout.LEASE, held.model_dump())
        os.utime(run.path(layout.LEASE), (NOW, NOW))
    return run


def test_a_run_that_was_stopped_is_believed_at_once(tmp_path: Path, clock: Clock) -> None:
    said: list[str] = []
    run = begun(tmp_path, kind="stop", reason="time is up")
    assert tail.follow(run, lambda events: None, said.append).state == "stopped"
    assert said == ["running", "stopped"]
    assert clock.now == pytest.approx(NOW + POLL_S)


def test_a_run_of_this_machine_that_nobody_works_on_is_over_after_five_seconds(tmp_path: Path, clock: Clock) -> None:
    said: list[str] = []
    assert tail.follow(begun(tmp_path), lambda events: None, said.append).state == "interrupted"
    assert said[1] == "interrupted? no events; waiting 5 s more"
    assert NOW + 5.0 <= clock.now <= NOW + 5.0 + 3 * POLL_S


def test_a_run_of_another_machine_is_over_when_it_has_been_silent_for_long(tmp_path: Path, clock: Clock) -> None:
    said: list[str] = []
    run = begun(tmp_path, host="pod-7/boot")
    assert tail.follow(run, lambda events: None, said.append, patience_s=400.0).state == "interrupted"
    assert "interrupted? no events; waiting 300 s more" in said, (
        "its lease holds for 100 s, then patience is what is left"
    )
    assert NOW + 400.0 <= clock.now <= NOW + 400.0 + 2 * POLL_S


def test_a_sign_of_life_makes_it_run_again(tmp_path: Path, clock: Clock) -> None:
    run = begun(tmp_path, host="pod-7/boot", kind="fail", error="EngineError", message="no", exit_code="1")
    said: list[str] = []

    def try_again() -> None:
        if clock.now > NOW + 200.0 and not run.exists(f"{layout.EVENTS}/b.jsonl"):
            event = {"time": clock.now, "kind": "start", "step": "prepare", "pid": 2}
            run.write(f"{layout.EVENTS}/b.jsonl", f"{json.dumps(event)}\n".encode())

    clock.on_sleep = try_again
    tail.follow(run, lambda events: None, said.append, patience_s=400.0)
    states = [state for state, _ in groupby(text.partition("?")[0] for text in said)]
    assert states == ["running", "failed", "running", "interrupted"]  # begun again, then silent
