from __future__ import annotations

from typing import Any

from spin_components.record.bootstrap import Difference
from spin_pipeline.runs.compare import ComparedRun, Comparison


def run(label: str, **changes: Any) -> ComparedRun:
    values: dict[str, Any] = {
        "label": label,
        "uri": label,
        "base_loss": 2.0,
        "losses": {0: 1.0},
        "num_iterations": 1,
        "best": 0,
        "acc": 1.0,
        "margin": 1.0,
        "from_base": None,
        "from_first": None,
        "work_s": 1.0,
        "digests": {},
    }
    return ComparedRun(**{**values, **changes})


def test_each_measure_has_its_own_verdict() -> None:
    other = run(
        "control",
        from_first=Difference(-0.5, -0.6, -0.4, 9, 10),
        answers_from_first={
            "chrf": Difference(-2.0, -3.0, -1.0, 2, 10),
            "match": Difference(0.1, -0.1, 0.3, 1, 10),
            "ended": None,
            "repetition": Difference(0.2, 0.1, 0.3, 8, 10),
        },
    )
    assert Comparison([run("spin"), other], [], []).sentences == [
        "control against spin: val_loss −0.500 (−0.600 to −0.400), better; "
        "chrF of greedy answers −2.000 (−3.000 to −1.000), worse; "
        "match of greedy answers +0.100 (−0.100 to +0.300), no clear change; "
        "repeated 4-grams +0.200 (+0.100 to +0.300), worse."
    ]


def test_runs_with_other_held_out_answers_have_no_verdict() -> None:
    assert Comparison([run("spin"), run("other")], [], []).sentences == []
