"""A run as a person sees it: `run` and `watch` on real terminals, while it goes on and after."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from playing import play
from s3_server import BUCKET, S3Server
from spin_components.events import read_events
from spin_components.settings import Settings
from spin_components.store.local import LocalRun
from spin_components.store.run import open_run
from terminal import Terminal

SPIN = [sys.executable, "-m", "spin_pipeline.cli"]
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def watch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`watch` without a terminal, to its end."""
    return subprocess.run([*SPIN, "watch", *arguments], capture_output=True, text=True, timeout=120, check=False)


def rows_of(terminal: Terminal, label: str) -> list[str]:
    """Every line that a step had."""
    found = [
        line
        for screen in terminal.screens
        for line in screen
        if re.match(rf"\s*[^!\s] {re.escape(label)} ", line + " ")
    ]
    assert found, f"{label} was never shown:\n" + "\n".join(terminal.screens[-1])
    return found


def bar_lengths(terminal: Terminal) -> dict[str, set[int]]:
    """The lengths that each step's bar had."""
    lengths: dict[str, set[int]] = {}
    for line in (line for screen in terminal.screens for line in screen):
        if re.search(r"[━─] .*\d/\d", line) and line.strip()[0] in SPINNER:
            lengths.setdefault(line.split()[1], set()).add(line.count("━"))
    return lengths


def durations(run: Any) -> dict[str, float]:
    """Seconds each step took, by its label in the view (of one iteration, epoch and shard)."""
    done = [event for event in read_events(run) if event["kind"] == "done"]
    return {event["step"] + " base" * (event.get("iteration") == -1): event["duration_s"] for event in done}


def test_watch_shows_each_step_of_a_local_run_begin_and_end_and_a_bar_that_moves(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    terminal = Terminal([*SPIN, "watch", str(folder), "--wait-for-start"], 80, 30)
    terminal.wait_for(lambda screen: "waiting for a run" in screen[0])
    one_by_one = {"batch_size": 1, "max_new_tokens": 256}  # slow enough to be looked at
    data = {"max_train_records": 32, "max_length": 384}
    play(make_settings(data=data, generation=one_by_one, hardware={"threads": 1}))
    assert terminal.wait() == 0
    for label, duration_s in durations(LocalRun(folder)).items():
        rows = rows_of(terminal, label)
        assert rows[-1].strip().startswith("✓"), rows[-1]
        if duration_s > 1.0:  # the view looks about three times a second
            assert any(row.strip()[0] in SPINNER for row in rows), rows
    assert any(len(lengths) > 2 for lengths in bar_lengths(terminal).values()), bar_lengths(terminal)
    assert rows_of(terminal, "iteration 0")[-1].strip().startswith("✓")
    assert any(line.startswith("human ") for screen in terminal.screens for line in screen)
    assert "done: " in terminal.text.split("\x1b[?1049l")[-1], "the summary comes after the moving picture"


def test_run_and_watch_show_a_run_in_object_storage_on_terminals_of_their_own(s3: S3Server, tmp_path: Path) -> None:
    uri = f"s3://{BUCKET}/{tmp_path.name}/run"
    small = ["spin.max_iterations=1", "spin.max_epochs=1", "generation.batch_size=1", "data.max_train_records=24"]
    small += ["hardware.threads=1", "generation.max_new_tokens=128"]  # slow enough for events that come in batches
    settings = [part for setting in small for part in ("--set", setting)]
    running = Terminal([*SPIN, "run", "--config", "tiny", "--run-uri", uri, *settings], 100, 40)
    watching = Terminal([*SPIN, "watch", uri, "--wait-for-start"], 60, 24)
    leaving = Terminal([*SPIN, "watch", uri, "--wait-for-start"], 80, 24)
    leaving.wait_for(lambda screen: any("✓ prepare" in line for line in screen))
    leaving.process.send_signal(signal.SIGINT)
    assert leaving.wait(60) == 130
    assert running.wait() == 0, "a watch that is left must not end the run"
    assert watching.wait() == 0
    for terminal in (running, watching):
        for label in durations(open_run(uri)):
            assert rows_of(terminal, label)[-1].strip().startswith("✓")
        assert any(len(lengths) > 1 for lengths in bar_lengths(terminal).values()), bar_lengths(terminal)
    late = watch(uri, "--json")
    assert late.returncode == 0, late.stderr
    events = [json.loads(line) for line in late.stdout.splitlines()]
    with open_run(uri) as run:
        assert events[:-1] == read_events(run)
    assert (events[-1]["kind"], events[-1]["exit_code"]) == ("end", 0)
    assert events[-1]["status"]["state"] == "done"


@pytest.fixture
def stopped_run(tmp_path: Path) -> LocalRun:
    """A run whose only attempt failed, by its events and attempt alone."""
    run = LocalRun(tmp_path / "failed")
    run.write_json("attempt.json", {"started": 1.0, "deadline": None})
    labels = {"step": "generate", "iteration": 0, "shard": 0}
    events = [
        {"time": 2.0, "kind": "start", "step": "prepare", "pid": 1},
        {"time": 3.0, "kind": "start", **labels, "pid": 1},
        {"time": 4.0, "kind": "warning", **labels, "message": "odd \x1b[2J[bold]text"},
        {"time": 5.0, "kind": "fail", **labels, "error": "EngineError", "message": "\x1b[31mno", "exit_code": 1},
    ]
    run.write("events/a.jsonl", "".join(json.dumps(event) + "\n" for event in events).encode())
    return run


def test_without_a_terminal_there_are_lines_and_the_runs_own_exit_code(stopped_run: LocalRun) -> None:
    result = watch(stopped_run.uri)
    assert result.returncode == 1
    assert "iteration 0  generate 0     odd ␛[2J[bold]text" in result.stdout
    assert "failed in generate iteration 0 shard 0: EngineError" in result.stdout
    assert "\x1b" not in result.stdout


def test_a_terminal_gets_no_escape_sequence_of_a_runs_making(stopped_run: LocalRun) -> None:
    terminal = Terminal([*SPIN, "watch", stopped_run.uri], 80, 24)
    assert terminal.wait() == 1
    assert "␛[2J[bold]text" in terminal.text
    assert "\x1b[2J" not in terminal.text


def test_watching_nothing_says_so(tmp_path: Path) -> None:
    result = watch(str(tmp_path / "nowhere"))
    assert result.returncode == 2
    assert "no run at" in result.stderr
    assert "--wait-for-start" in result.stderr


def test_a_reader_that_goes_away_is_no_error(stopped_run: LocalRun) -> None:
    command = f"{' '.join([*SPIN, 'watch', stopped_run.uri, '--json'])} | head -n 0"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert result.stderr == ""
