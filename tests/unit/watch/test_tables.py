from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from spin_pipeline.runs.status import BaseStatus, IterationStatus, RunStatus
from spin_pipeline.watch.tables import print_status


def iteration(number: int, **counts: Any) -> IterationStatus:
    values = {"iteration": number, "checkpoint_uri": "u", "val_loss": 3.5, "decision": "continue", "work_s": 61.2}
    return IterationStatus.model_validate(
        {**values, "acc": 0.9, "rewards_actual_mean": 0.5, "rewards_generated_mean": -0.5, **counts}
    )


def printed(*iterations: IterationStatus, **values: Any) -> list[str]:
    status = RunStatus(
        run_uri="runs/a",
        state="done",
        iteration=1,
        epoch=0,
        step=9,
        consumed_samples=64,
        best=None,
        iterations=list(iterations),
        base=BaseStatus(val_loss=4.0),
        **values,
    )
    text = io.StringIO()
    print_status(status, Console(file=text, width=80))
    return text.getvalue().splitlines()


def test_history_pairs_and_dropped_pairs_are_printed_within_80_columns() -> None:
    lines = printed(
        iteration(0, num_pairs=1998, num_dropped=2, dropped={"empty": 2, "identical": 0}),
        iteration(1, num_pairs=3998, num_history=1998, num_by_origin={"1": 2000, "0": 1998}),
    )
    (row,) = [line for line in lines if line.startswith("iteration 1 ")]
    assert row.split() == ["iteration", "1", "3.5000", "0.900", "0.500", "-0.500", "2000", "+", "1998", "61"]
    assert "pairs: the iteration's own + those from earlier iterations" in lines
    assert "iteration 0 dropped of its own pairs: 2 empty" in lines


def test_without_history_and_drops_there_are_no_notes_on_pairs() -> None:
    lines = printed(iteration(0, num_pairs=32))  # like runs of versions without history
    assert not [line for line in lines if "pairs:" in line]
    (row,) = [line for line in lines if line.startswith("iteration 0 ")]
    assert row.split()[-2:] == ["32", "61"]


def test_evaluations_are_side_by_side_and_missing_ones_are_dashes() -> None:
    results = {"arc": {"num_documents": 4, "metrics": {"acc": {"value": 0.75, "stderr": 0.25}}}}
    evaluation = {
        "tasks": {"results": results},
        "judge": {"mean": 7.0, "stderr": None, "num_scored": 1, "num_unparsed": 0},
    }
    lines = printed(iteration(0, num_pairs=32, evaluation=evaluation), iteration(1, num_pairs=32))
    rows = [line.split() for line in lines if line.startswith(("arc", "judge"))]
    assert rows == [["arc", "acc", "-", "0.750", "±", "0.250", "-"], ["judge", "-", "7.000", "-"]]


def test_warnings_of_the_data_are_printed_without_control_characters() -> None:
    assert "! 2 answers\u241b[2J" in printed(warnings=["2 answers\x1b[2J"])
