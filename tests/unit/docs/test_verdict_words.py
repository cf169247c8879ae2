"""The words of verdicts are defined in one page of the docs."""

from __future__ import annotations

from typing import get_args

from spin_components.checkpoint.drift import MARGINS
from spin_components.record.decisions import Decision, Outcome, word_of
from spin_components.settings.selection import HELD_OUT_MEASURES, JUDGE, TASK
from unit.docs.pages import ROOT

TEXT = (ROOT / "docs/tuning.md").read_text("utf-8")


def test_every_word_is_defined_beside_its_name_in_json() -> None:
    for name in (*get_args(Outcome), "saturated"):
        assert f"| {word_of(name)} | `{name}` |" in TEXT
    for decision in get_args(Decision):
        assert f"| `{decision}` | " in TEXT


def test_every_measure_and_margin_is_stated() -> None:
    for measure in (JUDGE, f"{TASK}NAME"):
        assert f"| `{measure}`" in TEXT
    for measure in HELD_OUT_MEASURES:
        assert f"| `{measure}`" in TEXT
        assert f"{measure} by more than {MARGINS[measure]}" in TEXT.replace("\n  ", " ")
    assert f"by more than {MARGINS['ended']} of all" in TEXT
    assert f"repeated, by more than {MARGINS['repetition']}" in TEXT.replace("\n  ", " ")
