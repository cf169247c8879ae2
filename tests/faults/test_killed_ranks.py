"""Two DeepSpeed ranks killed inside an epoch, on object storage, resume from their save with the same losses.

The ranks that are killed are forks of a process that has imported torch; those that go on are new processes.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from faults.attempts import Attempt, AttemptResult
from faults.ends import read_losses
from faults.ground import Ground, Tally, tables
from faults.harms import Rule
from spin_components.store import layout
from spin_components.store.lease import read_lease
from support import bounds
from support.warm_python import WarmPython
from support.warm_spin import WARM

RANKS: dict[str, dict[str, Any]] = {
    "spin": {"max_epochs": 1},
    "training": {"backend": "deepspeed", "zero_stage": 2},
    "hardware": {"ranks": 2},
}


def test_killed_ranks_go_on_from_their_save(
    ground: Ground, tally: Tally, tiny_llama: Path, warm_server: WarmPython
) -> None:
    ground.restore("prepare", warm=True)

    def play(number: int) -> AttemptResult:
        warm = {} if number or sys.platform != "linux" else {WARM: str(warm_server.executable)}
        attempt = Attempt(tables(**RANKS), ground.variables(**warm), ground.folder / "logs")
        if not number:
            rule = Rule(r"PUT .*/epochs/0/partial\.json", "strike after", skip=1, strike=attempt.kill)
            ground.proxy.reset(rule)
        return attempt.wait()

    assert play(0).kind == "killed"
    with ground.store() as run:
        while (lease := read_lease(run)) and lease.remaining_s:  # by a rank that was not reaped yet
            time.sleep(0.05)
        assert run.read_json(layout.partial(0, 0))["facts"]["done"] == 2
        assert not run.exists(layout.epoch_manifest(0, 0))
    second = play(1)
    assert second.kind == "done", second.message
    metrics = "iterations/0/epochs/0/metrics.json"
    with ground.store() as run:
        losses = read_losses(run, metrics)
        assert not run.exists(layout.partial(0, 0))
    assert losses == pytest.approx(ground.end.losses[metrics], abs=bounds.of_small_run(tiny_llama, num_steps=3))
    tally("kill ranks", "killed, then the same end")
