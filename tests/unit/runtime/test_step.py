"""The step protocol: when a step runs, what it publishes, and how it ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from spin_components.errors import BusyError, InputsChangedError
from spin_components.record.events import read_events
from spin_components.runtime.process import STOPPED
from spin_components.runtime.signals import Interrupted
from spin_components.runtime.step import Step
from spin_components.store import layout
from spin_components.store.lease import read_lease
from spin_components.store.lease_holder import LeaseHolder
from spin_components.store.local import LocalRun
from spin_components.store.manifests import read_manifest
from support.small import small_settings

KEY, FILE = "work/manifest.json", "work/file.txt"


@pytest.fixture
def run(tmp_path: Path) -> LocalRun:
    """A run that is prepared, without data."""
    run = LocalRun(tmp_path / "run")
    settings = small_settings(run.uri, "model", "data.jsonl")
    run.write_json(layout.RUN, {"settings": settings.model_dump(mode="json")})
    run.write_json(layout.ATTEMPT, {"deadline": None})
    return run


@contextmanager
def beginning(run: LocalRun, **options: Any) -> Iterator[Step]:
    with Step.begin("validate", run.uri, {"device": "cpu"}, iteration=0, **options) as step:
        yield step


def work(run: LocalRun, inputs: dict[str, Any], **options: Any) -> str:
    """A step that writes one file."""
    with beginning(run) as step:
        if step.is_due(KEY, lambda: inputs, **options):
            with step.write(FILE) as path:
                path.write_text("done", "utf-8")
            step.publish({"num_files": 1})
        return step.returns("address")


def kinds(run: LocalRun) -> list[str]:
    return [event["kind"] for event in read_events(run)]


def test_a_step_publishes_its_files_and_then_is_not_due_again(run: LocalRun) -> None:
    assert work(run, {"seed": 1}) == "address"
    manifest = read_manifest(run, KEY)
    assert (manifest.step, manifest.inputs, manifest.facts) == ("validate", {"seed": 1}, {"num_files": 1})
    assert manifest.outputs == {FILE: manifest.outputs[FILE]}
    assert work(run, {"seed": 1}) == "address"
    assert kinds(run) == ["start", "done", "start", "reuse"]
    assert read_manifest(run, KEY) == manifest


def test_other_inputs_are_refused_unless_the_step_replaces_them(run: LocalRun) -> None:
    work(run, {"seed": 1})
    with pytest.raises(InputsChangedError, match="seed was 1, now 2"):
        work(run, {"seed": 2})
    assert kinds(run)[-1] == "fail"
    with beginning(run) as step:
        assert step.is_due(KEY, lambda: {"seed": 2}, replaces=True)
        assert step.previous and step.previous.inputs == {"seed": 1}
        step.publish({})
    assert read_manifest(run, KEY).inputs == {"seed": 2}


def test_after_a_step_that_stopped_nothing_is_read_or_written(run: LocalRun, tmp_path: Path) -> None:
    before = sorted(run.root.rglob("*"))
    with beginning(run, after=["address", STOPPED]) as step:
        assert not step.is_due(KEY, lambda: pytest.fail("its inputs were asked for"))
        assert step.returns("address") == STOPPED
    assert sorted(run.root.rglob("*")) == before


def test_a_step_stops_when_the_time_is_up_but_finds_what_is_finished(run: LocalRun) -> None:
    work(run, {"seed": 1})
    run.write_json(layout.ATTEMPT, {"deadline": time.time() - 1})
    assert work(run, {"seed": 1}) == "address"
    run.delete(KEY)
    assert work(run, {"seed": 1}) == STOPPED
    assert kinds(run)[-2:] == ["start", "stop"]
    assert work(run, {"seed": 1}, is_timed=False) == "address"


def test_settings_and_deadline_are_read_once(run: LocalRun) -> None:
    with beginning(run) as step:
        assert not step.out_of_time()
        assert step.settings.hardware.device == "cpu"
        run.write_json(layout.ATTEMPT, {"deadline": 0})
        run.delete(layout.RUN)
        assert not step.out_of_time()
        assert step.settings is step.settings


def test_an_attempt_that_has_lost_the_run_publishes_nothing(run: LocalRun) -> None:
    with pytest.raises(BusyError, match="attempt other"), beginning(run) as step:
        step.is_due(KEY, dict)
        assert step.lease
        step.lease.release()  # as if it had expired
        other = LeaseHolder(run, "other", take_over=True)
        other.close()
        with pytest.raises(BusyError), step.write(FILE) as path:
            path.write_text("late", "utf-8")
        step.publish({})
    assert not run.exists(KEY)
    assert not run.exists(FILE)
    lease = read_lease(run)
    assert lease and (lease.owner, lease.number) == ("other", 2) and lease.remaining_s


def test_what_is_kept_beside_the_outputs_is_made_once(run: LocalRun) -> None:
    def keep(step: Step, text: str, *, replaces: bool = False) -> None:
        step.keep(
            "inputs/x.txt",
            {"text": text},
            lambda path: made.append(path.write_text(text, "utf-8")),
            manifest="inputs/x.json",
            what="x",
            replaces=replaces,
        )

    made: list[int] = []
    with beginning(run) as step:
        keep(step, "a")
        keep(step, "a")
        assert len(made) == 1
        with pytest.raises(InputsChangedError):
            keep(step, "b")
        keep(step, "bb", replaces=True)
    assert made == [1, 2]
    assert read_manifest(run, "inputs/x.json").step == "validate (x)"
    assert run.read("inputs/x.txt") == b"bb"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_step_and_gives_the_lease_back(run: LocalRun, number: signal.Signals) -> None:
    with pytest.raises(Interrupted, match=number.name), beginning(run):
        os.kill(os.getpid(), number)
        pytest.fail("the step went on")
    assert kinds(run) == ["start"], "the run is interrupted, neither stopped nor failed"
    lease = read_lease(run)
    assert lease and lease.remaining_s == 0


def test_a_step_that_saves_first_ends_with_its_block(run: LocalRun) -> None:
    saved = False
    with pytest.raises(Interrupted, match="SIGTERM"), beginning(run) as step, step.interruption_postponed():
        assert not step.out_of_time()
        os.kill(os.getpid(), signal.SIGTERM)
        assert step.out_of_time()
        saved = True
    assert saved
    assert kinds(run) == ["start"]


def test_the_first_rank_alone_writes_events_and_outputs(run: LocalRun) -> None:
    with beginning(run) as step:
        step.is_due(KEY, lambda: {"seed": 1})
        for rank in (1, 0):
            with Step.join(
                "validate",
                run.uri,
                step.hardware,
                attempt=step.attempt,
                rank=rank,
                key=KEY,
                inputs=step.inputs,
                iteration=0,
            ) as joined:
                joined.warn(f"rank {rank}")
                if rank == 0:
                    joined.publish({})
    assert read_manifest(run, KEY).inputs == {"seed": 1}
    assert [event["message"] for event in read_events(run) if event["kind"] == "warning"] == ["rank 0"]
