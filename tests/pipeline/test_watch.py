"""A run as a person sees it: `run` and `watch` on real terminals, while it goes on and after."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from faults.proxy import Proxy
from spin_components.record.events import read_events
from spin_components.store.bucket import DEADLINE
from spin_components.store.local import LocalRun
from spin_components.store.lock import locked
from spin_components.store.open import open_run
from support.gate import Gate
from support.s3_server import BUCKET, S3Server
from support.terminal import Terminal
from support.warm_spin import SPIN

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


@pytest.mark.usefixtures("warm_driver")
def test_run_and_watch_show_a_run_in_object_storage_on_terminals_of_their_own(
    s3: S3Server, tmp_path: Path, tiny_llama: Path, question_file: Path
) -> None:
    uri = f"s3://{BUCKET}/{tmp_path.name}/run"
    small = ["spin.max_iterations=1", "spin.max_epochs=1", "data.max_train_records=32", "generation.max_new_tokens=8"]
    small += [f"model.base={tiny_llama}", f"data.train={question_file}", "data.validation_size=8"]
    # a save and a validation after each of four training steps: what a validation writes flushes the step's progress,
    # which would otherwise be written or held back by how much time has passed
    small += ["training.save_interval=1", "validation.val_check_interval=1", "validation.num_samples=2"]
    settings = [part for setting in small for part in ("--set", setting)]
    # the run waits before these: when it has generated, and with a save that is held for the next, a step later
    gates = [
        Gate(rf"PUT .*/iterations/0/{key}/") for key in ("generations", "epochs/0/partial/1", "epochs/0/partial/2")
    ]
    shown = [("generate", "32/32 answers"), ("train-epoch", "2/4 steps"), ("train-epoch", "3/4 steps")]
    with ExitStack() as stack:
        proxy = stack.enter_context(closing(Proxy(s3.port)))
        proxy.reset(*(gate.rule for gate in gates))
        for gate in gates:
            stack.callback(gate.open)
        own = {"S3_ENDPOINT": proxy.endpoint, DEADLINE: "3600"}
        command = [*SPIN, "run", "--config", "tiny", "--run-uri", uri, *settings]
        running = stack.enter_context(Terminal(command, 100, 40, **own))
        watching = stack.enter_context(Terminal([*SPIN, "watch", uri, "--wait-for-start"], 60, 24))
        leaving = stack.enter_context(Terminal([*SPIN, "watch", uri, "--wait-for-start"], 80, 24))
        gates[0].wait(running.process)
        leaving.wait_for(is_done("prepare"))
        leaving.process.send_signal(signal.SIGINT)
        assert leaving.wait() == 130
        bars = defaultdict[Terminal, list[int]](list)
        for gate, (label, counts) in zip(gates, shown, strict=True):
            gate.wait(running.process)
            for terminal in (running, watching):
                picture = terminal.wait_for(is_at_work(label, counts))
                bars[terminal].append(row(picture, label).count("━"))
            gate.open()
        assert running.wait() == 0, "a watch that is left must not end the run"
        assert watching.wait() == 0
    for terminal in (running, watching):
        whole, half, three_quarters = bars[terminal]
        assert 0 < half < three_quarters
        assert whole > 0
    late = watch(uri, "--json")
    assert late.returncode == 0, late.stderr
    events = [json.loads(line) for line in late.stdout.splitlines()]
    with open_run(uri) as run:
        assert events[:-1] == read_events(run)
    assert (events[-1]["kind"], events[-1]["exit_code"]) == ("end", 0)
    assert events[-1]["status"]["state"] == "done"
    for label in {label_of(event) for event in events[:-1]}:
        assert is_done(label)(running.last_words), label
        assert is_done(label)(watching.last_words), label


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
