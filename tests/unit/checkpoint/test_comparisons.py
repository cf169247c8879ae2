from __future__ import annotations

from pathlib import Path

import pytest

from spin_components.checkpoint.comparisons import change_finder, measured
from spin_components.checkpoint.measured import Measured
from spin_components.data.shards import GREEDY, SAMPLED, AnswerMeasures, write_rows
from spin_components.record.bootstrap import Difference
from spin_components.store import layout
from spin_components.store.digests import digest_file
from spin_components.store.layout import BASE
from spin_components.store.local import LocalRun
from spin_components.store.manifests import Manifest


def validate(run: LocalRun, iteration: int, rows: list[AnswerMeasures], **facts: float) -> None:
    """Store a validation of epoch 0; without rows, as an earlier release did."""
    manifest_key, outputs = layout.validation(iteration, 0), {}
    if rows:
        key = layout.measures_of(manifest_key)
        path = run.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, AnswerMeasures, rows)
        outputs[key] = digest_file(path)
    manifest = Manifest(step="validate", inputs={}, outputs=outputs, facts={"val_loss": 2.0, **facts})
    run.write_json(manifest_key, manifest.model_dump(mode="json"))


def rows(chrf: float, *, ended: bool) -> list[AnswerMeasures]:
    return [
        AnswerMeasures(index, decoding, [1], 1, 1, ended, 0.25, chrf if decoding == GREEDY else 99.0, False)
        for decoding in (SAMPLED, GREEDY)
        for index in range(8)
    ]


EPOCHS = {BASE: 0, 0: 0, 1: 0}


@pytest.fixture
def run(tmp_path: Path) -> LocalRun:
    """The base model, an iteration, and one that an earlier release validated."""
    run = LocalRun(tmp_path / "run")
    validate(run, BASE, rows(20.0, ended=True), length_ratio=1.5, greedy_chrf=20.0, greedy_match=0.0)
    validate(run, 0, rows(30.0, ended=False), length_ratio=2.5, greedy_chrf=30.0, greedy_match=0.0)
    validate(run, 1, [], length_ratio=1.0)
    return run


def test_measures_of_answers_are_compared_as_they_were_decoded(run: LocalRun) -> None:
    changes = change_finder(run, EPOCHS, 0.95)
    assert changes("chrf", BASE, 0) == Difference(10.0, 10.0, 10.0, 8, 8)
    assert changes("ended", BASE, 0) == Difference(-1.0, -1.0, -1.0, 0, 8)
    assert changes("repetition", BASE, 0) == Difference(0.0, 0.0, 0.0, 0, 8)


def test_a_validation_of_an_earlier_release_has_nothing_to_compare(run: LocalRun) -> None:
    changes = change_finder(run, EPOCHS, 0.95)
    assert changes("chrf", 0, 1) is None
    base, first, second = measured(run, EPOCHS, {0: BASE, 1: 0})
    assert base == Measured(BASE, 2.0, None, 1.5, 20.0, 0.0, BASE)
    assert first == Measured(0, 2.0, None, 2.5, 30.0, 0.0, BASE)
    assert second == Measured(1, 2.0, None, 1.0, None, None, 0)
