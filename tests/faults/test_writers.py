"""Two attempts at one run: one is refused while the other lives, and a late one commits nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from faults.attempts import Attempt, Outcome
from faults.ground import Ground, Tally, tables
from faults.harms import Rule
from spin_components.store import layout
from spin_components.store.lease import check_free, read_lease
from spin_components.store.run import open_run


def second(ground: Ground, **variables: str) -> Attempt:
    """Another attempt at the run, beside the ground's own."""
    return Attempt(tables(), ground.variables(**variables), ground.folder / "logs")


def restore_released(ground: Ground) -> None:
    """Have the run as its first epoch begins, and held by nobody."""
    ground.restore("train-epoch", warm=True)
    with ground.store() as run:
        run.delete(layout.LEASE)


def end_lease(ground: Ground) -> None:
    """Have the time of the run's lease be over."""
    with ground.store() as run:
        lease = read_lease(run)
        assert lease is not None
        earlier = lease.model_copy(update={"renewed_at": lease.renewed_at - lease.duration_s})
        run.write_json(layout.LEASE, earlier.model_dump(mode="json"))


def test_a_second_attempt_is_refused_while_the_first_lives(ground: Ground, tally: Tally) -> None:
    ground.restore("generate", warm=True)
    refused: list[Outcome] = []
    rule = Rule(r"PUT .*/ref_logprobs/00000\.json", "pause", strike=lambda: refused.append(second(ground).wait()))
    ground.proxy.reset(rule)
    assert ground.begin().wait().kind == "done"
    assert [outcome.error for outcome in refused] == ["BusyError"]
    assert "another runner is at work on s3://bucket/run" in refused[0].message
    ground.check_end("a second attempt was refused")
    tally("two attempts", "second refused, same end")


def test_a_second_attempt_on_this_machine_takes_over_at_once_from_one_that_was_killed(
    ground: Ground, tally: Tally
) -> None:
    ground.restore("train-epoch", warm=True)
    first = ground.begin()
    ground.proxy.reset(Rule(r"PUT .*/epochs/0/partial\.json", "strike before", skip=1, strike=first.kill))
    assert first.wait().kind == "killed"
    assert second(ground).wait().kind == "done"
    ground.check_end("a second attempt took over")
    tally("two attempts", "killed, then the same end")


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a process another host name needs root")
def test_a_second_attempt_takes_over_from_another_machine_when_the_lease_is_over(ground: Ground, tally: Tally) -> None:
    restore_released(ground)
    first = second(ground, FAULTS_HOST="elsewhere")
    ground.proxy.reset(Rule(r"PUT .*/epochs/0/partial\.json", "strike after", strike=first.kill))
    assert first.wait().kind == "killed"
    at_once = second(ground).wait()
    assert at_once.error == "BusyError"
    assert "on elsewhere" in at_once.message
    assert "if it has died, the run is free in" in at_once.message
    end_lease(ground)
    assert second(ground).wait().kind == "done"
    ground.check_end("a second attempt took over from another machine")
    tally("two attempts", "killed, clear error, then the same end")


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a process another host name needs root")
@pytest.mark.parametrize(
    ("where", "allowed"),
    [
        # a request that was under way when its sender fell asleep may arrive long after: a pointer that the epoch's
        # manifest has superseded, or a manifest that differs in how long the steps took
        (
            r"PUT .*/epochs/0/partial\.json",
            "iterations/0/epochs/0/partial.json is stored, but not by the undisturbed run",
        ),
        (r"PUT .*/epochs/0/manifest\.json", "iterations/0/epochs/0/metrics.json is not what its manifest says"),
    ],
)
def test_an_attempt_that_sleeps_while_another_takes_over_changes_nothing(
    ground: Ground, tally: Tally, where: str, allowed: str
) -> None:
    restore_released(ground)
    first = second(ground, FAULTS_HOST="elsewhere")
    rule = Rule(where, "strike before", strike=lambda: os.kill(first.pid, signal.SIGSTOP))
    ground.proxy.reset(rule)
    try:
        while not rule.hits:
            assert first.is_alive, first.wait().message
            time.sleep(0.01)
        end_lease(ground)
        assert second(ground).wait().kind == "done"
    finally:
        os.kill(first.pid, signal.SIGCONT)
    late = first.wait()
    assert late.kind == "done" or late.error == "BusyError", late.message
    ground.check_end(f"a late attempt ended with {late.error or late.kind}", allowed=allowed)
    tally("two attempts", "slept, then the same end")


def test_a_process_that_has_ended_holds_nothing_though_nobody_reaped_it(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from spin_components.store.lease import LeaseHolder\n"
        "from spin_components.store.run import open_run\n"
        "LeaseHolder(open_run(sys.argv[1]), 'first', take_over=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = open_run(str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code, run.uri]) as first:
        while psutil.Process(first.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        check_free(run, "second")
