from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

import pytest

from clock import Clock
from spin_components.record import events
from spin_components.record.events import EventLog, EventTail, Progress, read_events
from spin_components.store.local import LocalRun

LABELS = {"step": "train-epoch", "iteration": 0, "epoch": 1, "shard": None}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of events; it stands."""
    clock = Clock()
    monkeypatch.setattr(events, "time", clock)
    return clock


def test_events_have_kind_time_and_the_labels_that_are_set(tmp_path: Path) -> None:
    log = EventLog(LocalRun(tmp_path), LABELS)
    log.write("metrics", loss=0.5, name="ü")
    (event,) = read_events(LocalRun(tmp_path))
    assert event.pop("time") > 1.7e9  # seconds since 1970
    assert event == {"kind": "metrics", "step": "train-epoch", "iteration": 0, "epoch": 1, "loss": 0.5, "name": "ü"}


def test_events_of_many_processes_are_ordered_by_time(tmp_path: Path) -> None:
    for name, times in (("a", (3.0, 5.0)), ("b", (1.0, 4.0)), ("c", (2.0,))):
        lines = [json.dumps({"time": time, "kind": "progress"}) for time in times]
        LocalRun(tmp_path).write(f"events/{name}.jsonl", ("\n".join(lines) + "\n").encode())
    assert [event["time"] for event in read_events(LocalRun(tmp_path))] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_each_process_has_its_own_file_named_after_its_labels(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    for log in (EventLog(run, LABELS), EventLog(run, LABELS)):
        log.write("start")
        log.write("done")
    first, second = run.list("events", "*.jsonl")
    assert first < second  # by the time they began
    assert f"-train-epoch-0-1-{os.getpid()}.jsonl" in first
    assert len(read_events(run)) == 4


def test_a_disabled_log_writes_nothing(tmp_path: Path) -> None:
    EventLog(LocalRun(tmp_path), LABELS, enabled=False).write("start")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_has_no_events(tmp_path: Path) -> None:
    assert read_events(LocalRun(tmp_path / "absent")) == []


def test_a_truncated_line_is_skipped(tmp_path: Path) -> None:
    log = EventLog(LocalRun(tmp_path), LABELS)
    log.write("start")
    (path,) = (tmp_path / "events").iterdir()
    with path.open("ab") as file:
        file.write(b'{"time": 1.0, "kind": "metr' + b"\xc3")
    assert [event["kind"] for event in read_events(LocalRun(tmp_path))] == ["start"]


def test_a_failing_write_is_one_warning_and_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "events").write_text("a file where the folder should be")
    log = EventLog(LocalRun(tmp_path), LABELS)
    with caplog.at_level(logging.WARNING):
        log.write("start")
        log.write("done")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert re.search(r"events/\S+\.jsonl cannot be written: ", caplog.text)


def test_values_that_are_not_json_are_written_as_text(tmp_path: Path) -> None:
    EventLog(LocalRun(tmp_path), LABELS).write("save", path=Path("a/b"))
    assert read_events(LocalRun(tmp_path))[0]["path"] == "a/b"


@pytest.mark.parametrize("text", ["two\nlines", "a\u2028b", "a\u0085b", "a\x0bb\x1cc", '"}{'])
def test_any_text_round_trips(tmp_path: Path, text: str) -> None:
    EventLog(LocalRun(tmp_path), LABELS).write("warning", message=text)
    assert [event["message"] for event in read_events(LocalRun(tmp_path))] == [text]


def test_text_that_utf8_cannot_encode_does_not_raise(tmp_path: Path) -> None:
    # a lone surrogate, as Python decodes a file name that is not UTF-8
    EventLog(LocalRun(tmp_path), LABELS).write("warning", message="caf\udce9")
    assert len(read_events(LocalRun(tmp_path))) == 1


def test_a_tail_returns_each_event_once_and_only_complete_lines(tmp_path: Path) -> None:
    log = EventLog(LocalRun(tmp_path), LABELS)
    log.write("start")
    before, tail = EventTail(LocalRun(tmp_path), skip=True), EventTail(LocalRun(tmp_path))
    assert [event["kind"] for event in tail.new()] == ["start"]
    (path,) = (tmp_path / "events").iterdir()
    with path.open("a") as file:
        file.write('{"time": 1.0, "kind":')
        file.flush()
        assert tail.new() == []
        file.write(' "metrics"}\n')
    assert [event["kind"] for event in tail.new()] == ["metrics"]
    assert [event["kind"] for event in before.new()] == ["metrics"]
    assert tail.new() == before.new() == []


def test_a_tail_skips_a_damaged_line(tmp_path: Path) -> None:
    # after a write to a full disk the next event is appended to half a line
    run = LocalRun(tmp_path)
    run.write("events/a.jsonl", b'{"time": 1.0, "ki{"time": 2.0, "kind": "a"}\n{"time": 3.0, "kind": "done"}\n')
    assert [event["kind"] for event in EventTail(run).new()] == ["done"]


def kinds(run_folder: Path) -> list[str]:
    return [event["kind"] for event in read_events(LocalRun(run_folder))]


def test_frequent_events_are_limited_and_the_last_one_is_kept(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(LocalRun(tmp_path), LABELS)
    for step in range(1000):  # a hundredth of a second each, and a little, which keeps clear of rounding
        clock.now = 1000.0 + 0.010001 * step
        log.write("metrics", global_step=step)
        log.write("progress", done=step, total=1000, unit="steps")
    log.write("done", facts={})
    found = read_events(LocalRun(tmp_path))
    # a metric each fifth of a second and progress each half: every 20th and every 50th step, and the last
    assert [event["global_step"] for event in found if event["kind"] == "metrics"] == [*range(0, 1000, 20), 999]
    assert [event["done"] for event in found if event["kind"] == "progress"] == [*range(0, 1000, 50), 999]
    assert found[-1]["kind"] == "done"


@pytest.mark.usefixtures("clock")
def test_closing_writes_held_back_events(tmp_path: Path) -> None:
    log = EventLog(LocalRun(tmp_path), LABELS)
    log.write("metrics", global_step=1)
    log.write("metrics", global_step=2)
    assert kinds(tmp_path) == ["metrics"]
    log.close()
    assert [event["global_step"] for event in read_events(LocalRun(tmp_path))] == [1, 2]


def test_progress_has_rate_and_remaining_time_of_this_attempt(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(LocalRun(tmp_path), LABELS)
    progress = Progress(log, 20, "steps", done=10)
    clock.now += 4.0
    progress.update(12, num_tokens=80)  # two steps in four seconds; eight are left
    first, second = read_events(LocalRun(tmp_path))
    assert (first["done"], first["total"], first["unit"]) == (10, 20, "steps")
    assert (second["rate"], second["eta_s"], second["tokens_per_s"]) == (0.5, 16.0, 20.0)


def test_fields_that_are_not_json_do_not_raise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log, circle = EventLog(LocalRun(tmp_path), LABELS), list[object]()
    circle.append(circle)
    with caplog.at_level(logging.WARNING):
        log.write("done", facts=circle)
        log.write("done", facts=circle)
        log.write("start")
    assert kinds(tmp_path) == ["start"]
    assert len(caplog.records) == 1


def test_a_tail_skips_lines_that_are_not_events(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    run.write("events/a.jsonl", b'5\n"text"\n{"kind": "start"}\n{"time": null}\n{"time": 3.0, "kind": "done"}\n')
    assert [event["kind"] for event in EventTail(run).new()] == ["done"]
