"""How a run ended, in the sentence of the task `result`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spin_components.runtime.result_artifacts import outcome_of
from spin_components.store import layout
from spin_components.store.local import LocalRun

NOW = 1.8e9
START: dict[str, Any] = {"kind": "start"}
FAIL: dict[str, Any] = {"kind": "fail", "error": "EngineError", "message": "no", "exit_code": 1}
LAST = [{"iteration": 0, "decision": "done"}]


def ended(root: Path, *events: dict[str, Any], checkpoints: list[dict[str, Any]] = LAST) -> str:
    """The sentence for a run whose second attempt has these events of `generate`, a second apart."""
    run = LocalRun(root)
    run.write_json(layout.ATTEMPT, {"started": NOW, "deadline": None, "number": 2})
    run.write_json(layout.BEST, {"iteration": 0, "uri": "x", "val_loss": 3.5})
    lines = [
        json.dumps({"time": NOW + number, "attempt": 2, "step": "generate", "iteration": 0, "shard": 0, **event})
        for number, event in enumerate(events)
    ]
    run.write("events/a.jsonl", ("\n".join(lines) + "\n").encode())
    return outcome_of(run, checkpoints)


def test_a_step_that_was_begun_again_is_no_failure_of_the_run(tmp_path: Path) -> None:
    assert ended(tmp_path, START, FAIL, START) == "done after iteration 0; the best is iteration 0, val_loss 3.5"


def test_the_last_failure_of_a_step_is(tmp_path: Path) -> None:
    sentence = ended(tmp_path, START, FAIL, START, {**FAIL, "message": "again"}, checkpoints=[])
    assert sentence == "failed in generate iteration 0 shard 0: EngineError: again"


@pytest.mark.parametrize("shift_s", [-600.0, 600.0])
def test_an_earlier_attempts_failure_is_not_this_ones_whatever_its_clock_showed(tmp_path: Path, shift_s: float) -> None:
    sentence = ended(tmp_path, {**FAIL, "attempt": 1, "time": NOW + shift_s}, START)
    assert sentence.startswith("done after iteration 0")
