"""The order of events: by attempt, by time, and within a file as they were written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clock import Clock
from spin_components.record import events
from spin_components.record.events import EventLog, EventTail, read_events
from spin_components.store.local import LocalRun


def store(run: LocalRun, name: str, *lines: dict[str, Any]) -> None:
    content = "".join(json.dumps({"kind": "progress", **line}) + "\n" for line in lines)
    run.write(f"events/{name}.jsonl", content.encode())


def test_an_event_has_the_number_of_its_attempt_and_its_own_count(tmp_path: Path) -> None:
    log = EventLog(LocalRun(tmp_path), {"step": "generate"}, attempt=7)
    for number in range(3):
        log.write("save", done=number)
    numbers = [(event["attempt"], event["count"], event["done"]) for event in read_events(LocalRun(tmp_path))]
    assert numbers == [(7, 1, 0), (7, 2, 1), (7, 3, 2)]


def test_events_of_an_earlier_attempt_come_first_whatever_their_time(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    store(run, "b", {"time": 900.0, "attempt": 1})
    store(run, "a", {"time": 300.0, "attempt": 2}, {"time": 301.0, "attempt": 2})
    store(run, "c", {"time": 999.0})
    found = read_events(run)
    assert [(event.get("attempt"), event["time"]) for event in found] == [(None, 999), (1, 900), (2, 300), (2, 301)]


def test_events_of_a_file_stay_in_order_where_the_clock_went_back(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    store(run, "a-00000", {"time": 5.0, "done": 1}, {"time": 2.0, "done": 2})
    store(run, "a-00001", {"time": 3.0, "done": 3})
    store(run, "b", {"time": 4.0, "done": 0})
    assert [event["done"] for event in read_events(run)] == [0, 1, 2, 3]


def test_a_tail_goes_on_from_the_latest_time_of_a_file(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    store(run, "a-00000", {"time": 5.0, "done": 1})
    tail = EventTail(run)
    assert len(tail.new()) == 1
    store(run, "a-00001", {"time": 2.0, "done": 3})
    store(run, "b", {"time": 4.0, "done": 2})
    assert [event["done"] for event in tail.new()] == [2, 3]


def test_times_go_on_where_the_clock_of_the_machine_is_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(1000.0)
    monkeypatch.setattr(events, "time", clock)
    log = EventLog(LocalRun(tmp_path), {"step": "generate"}, attempt=1, offset_s=600.0)
    monkeypatch.setattr(clock, "time", lambda: 400.0)
    clock.now += 2.0
    log.write("start")
    assert [event["time"] for event in read_events(LocalRun(tmp_path))] == [1602.0]
