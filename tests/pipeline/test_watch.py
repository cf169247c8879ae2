"""A run as a person sees it: `run` and `watch` on real terminals, while it goes on and after."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spin_components.record.events import read_events
from spin_components.store.local import LocalRun
from spin_components.store.lock import locked
from support.terminal import Terminal

SPIN = [sys.executable, "-m", "spin_pipeline.cli"]
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def watch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`watch` without a terminal, to its end."""
    return subprocess.run([*SPIN, "watch", *arguments], capture_output=True, text=True, check=False)


def row(lines: list[str], label: str) -> str:
    """A step's line in a picture; empty where it has none."""
    return next((line.strip() for line in lines if re.match(rf"\s*\S {re.escape(label)}(  |$)", line)), "")


def is_at_work(label: str, counts: str = "") -> Callable[[list[str]], bool]:
    """Whether a picture shows that a step runs, and how far it is."""
    return lambda screen: row(screen, label)[:1] in tuple(SPINNER) and counts in row(screen, label)


def is_done(label: str) -> Callable[[list[str]], bool]:
    """Whether a picture shows that a step has ended well."""
    return lambda screen: row(screen, label).startswith("✓")


def label_of(event: dict[str, Any]) -> str:
    """What the view calls the step of an event, in a run with one epoch and one shard an iteration."""
    return str(event["step"]) + " base" * (event.get("iteration") == -1)


def test_watch_shows_each_step_begin_and_end_and_a_bar_that_moves(finished: LocalRun, tmp_path: Path) -> None:
    events = read_events(finished)
    num_shown = [event["kind"] for event in events].index("published")
    run, bars = LocalRun(tmp_path / "run"), defaultdict[tuple[str, str], list[int]](list)
    with Terminal([*SPIN, "watch", run.uri, "--wait-for-start"], 80, 30) as terminal:
        terminal.wait_for(lambda screen: "waiting for a run" in screen[0])
        with locked(run.scratch):
            writer = run.appender("events/a.jsonl")
            for event in events[:num_shown]:  # each is written once the one before was seen
                writer.write(json.dumps(event))
                label = label_of(event)
                match event["kind"]:
                    case "start":
                        terminal.wait_for(is_at_work(label))
                    case "progress":
                        counts = f"{event['done']}/{event['total']} {event['unit']}"
                        line = row(terminal.wait_for(is_at_work(label, counts)), label)
                        bars[label, event["unit"]].append(line.count("━"))
                    case "metrics":
                        terminal.wait_for(lambda screen, step=event["global_step"]: f"after step {step}" in screen)  # type: ignore[misc]
                    case "samples":
                        terminal.wait_for(lambda screen: any(line.startswith("human ") for line in screen))
                    case "done":
                        terminal.wait_for(is_done(label))
            for event in events[num_shown:]:
                writer.write(json.dumps(event))
            shutil.copytree(finished.root, run.root, ignore=shutil.ignore_patterns("events"), dirs_exist_ok=True)
        assert terminal.wait() == 0
    assert {"generate", "ref-logprob", "train-epoch", "validate"} <= {label for label, _ in bars}
    for name in (("generate", "answers"), ("ref-logprob", "pairs"), ("train-epoch", "steps")):
        assert len(bars[name]) > 1
        assert bars[name] == sorted(set(bars[name]))
    assert is_done("iteration 0")(terminal.last_words)
    assert is_done("iteration 1")(terminal.last_words)
    assert any(line.startswith("done: ") for line in terminal.last_words), "the summary comes after the moving picture"


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
    with Terminal([*SPIN, "watch", stopped_run.uri], 80, 24) as terminal:
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
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.stderr == ""
