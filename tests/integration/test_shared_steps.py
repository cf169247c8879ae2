"""Steps whose work several processes share give the numbers of one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from spin_components.data.shards import Pair, Score, read_rows
from spin_components.errors import NonFiniteError
from spin_components.memory import processes
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import read_manifest
from support.playing import begin, play_scores

pytestmark = pytest.mark.usefixtures("warm_python")

MakeSettings = Callable[..., Settings]
ONE = {"device": "cpu", "threads": 1}
TWO = {**ONE, "ranks": 2}


@pytest.fixture
def always_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has steps start processes however little they save."""
    monkeypatch.setattr(processes, "START_S", 0.0)


def progress_of(run: LocalRun, step: str) -> list[int]:
    lines = [line for path in sorted(run.root.glob("events/*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    events = [json.loads(line) for line in lines]
    return [event["done"] for event in events if (event["event"], event["step"]) == ("progress", step)]


def test_two_processes_give_the_answers_and_the_scores_of_one(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for name, hardware in (("one", ONE), ("two", TWO)):
        settings = make_settings(run={"uri": str(tmp_path / name)}, hardware=hardware)
        reference = begin(settings)
        if hardware is TWO:
            monkeypatch.setattr(processes, "START_S", 0.0)
        play_scores(settings, 0, reference)
        runs.append(LocalRun(tmp_path / name))
    one, two = runs
    for key, kind in ((layout.generations(0, 0), Pair), (layout.ref_logprobs(0, 0), Score)):
        assert read_rows(two.path(key), kind) == read_rows(one.path(key), kind)
        assert progress_of(two, "generate" if kind is Pair else "ref-logprob")[-1] == 20
    assert read_manifest(two, layout.manifest_of(layout.generations(0, 0))).facts["num_engines"] == 2
