"""Two attempts at one run: the second is refused while the first runs, and an outdated one commits nothing."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from faults.attempts import Attempt, AttemptResult
from faults.ground import Ground, Tally, tables
from faults.harms import Rule
from spin_components.store import layout
from spin_components.store.lease import check_free
from spin_components.store.open import open_run
from support.started import started


def second(ground: Ground, **variables: str) -> Attempt:
    """Start a second attempt at the run."""
    return Attempt(tables(), ground.variables(**variables), ground.folder / "logs")


def restore_released(ground: Ground) -> None:
    """Restore the run to the start of its first epoch, without a lease."""
    ground.restore("train-epoch", warm=True)
    with ground.store() as run:
        run.delete(layout.LEASE)


def end_lease(ground: Ground) -> None:
    """End the lease of another attempt, by the clock of the storage."""
    ground.server.backdate(f"run/{layout.LEASE}", 400.0)


def test_a_second_attempt_is_refused_while_the_first_lives(ground: Ground, tally: Tally) -> None:
    ground.restore("generate", warm=True)
    refused: list[AttemptResult] = []
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
def test_a_second_attempt_takes_over_from_another_machine_after_the_lease_expires(ground: Ground, tally: Tally) -> None:
    restore_released(ground)
    first = second(ground, FAULTS_HOST="elsewhere")
    ground.proxy.reset(Rule(r"PUT .*/epochs/0/partial\.json", "strike after", strike=first.kill))
    assert first.wait().kind == "killed"
    at_once = second(ground).wait()
    assert at_once.error == "BusyError"
    assert "on elsewhere" in at_once.message
    assert "if it has died, its lease expires in" in at_once.message
    end_lease(ground)
    assert second(ground).wait().kind == "done"
    ground.check_end("a second attempt took over from another machine")
    tally("two attempts", "killed, clear error, then the same end")


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a process another host name needs root")
@pytest.mark.parametrize("where", [r"PUT .*/epochs/0/partial\.json", r"PUT .*/epochs/0/manifest\.json"])
def test_an_attempt_that_sleeps_while_another_takes_over_changes_nothing(
    ground: Ground, tally: Tally, where: str
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
    # the request is repeated, and refused by the look before it, unless its time was up while its sender slept
    assert late.error in ("BusyError", "StorageError"), late.message
    ground.check_end("a late attempt was refused")
    tally("two attempts", "slept, then the same end")


def test_a_zombie_process_holds_no_lease(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from spin_components.store.lease_holder import LeaseHolder\n"
        "from spin_components.store.open import open_run\n"
        "LeaseHolder(open_run(sys.argv[1]), 'first', take_over=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = open_run(str(tmp_path))
    with started([sys.executable, "-c", code, run.uri]) as first:
        while psutil.Process(first.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        check_free(run, "second")
