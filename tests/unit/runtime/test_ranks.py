"""What ranks take of a machine, and what they report."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import BaseModel

from spin_components.errors import DataError
from spin_components.runtime.ranks import launch, leave_torchrun, take_gpus

pytestmark = pytest.mark.usefixtures("warm_python")

_MODULE = """
import json, sys, time
from pathlib import Path
from spin_components.errors import DataError
from spin_components.runtime.ranks import begin_rank, take_part

rank, ranks = begin_rank()
path = Path(sys.argv[1])
job = json.loads(path.read_text())

def work(report):
    report(10 + rank)
    if job["fails"] and rank:
        raise DataError("the second rank found a fault")
    if job["fails"]:
        while not path.with_name("outcome-00001.json").exists():
            time.sleep(0.05)
        raise ConnectionError("the second rank is gone")
    return {"rank": rank, "of": ranks}

take_part(path, "the test", work)
"""


class Job(BaseModel):
    fails: bool


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module whose second rank may fail."""
    (tmp_path / "ranked.py").write_text(_MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return "ranked"


def test_outcomes_are_in_the_order_of_the_ranks(module: str) -> None:
    outcomes = launch(module, Job(fails=False), 2, where="the test")
    assert [(outcome["rank"], outcome["of"]) for outcome in outcomes] == [(0, 2), (1, 2)]


def test_the_error_of_the_first_rank_to_fail_is_raised(module: str) -> None:
    with pytest.raises(DataError, match="the second rank found a fault"):
        launch(module, Job(fails=True), 2, where="the test")


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, ["0,1", "2,3"]), ("", ["0,1", "2,3"]), ("4,5,6,7", ["4,5", "6,7"])]
)
def test_each_engine_gets_its_own_group_of_gpus(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[str]
) -> None:
    for rank, names in enumerate(expected):
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        take_gpus(rank, 2)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == names


def test_an_engine_sees_nothing_of_the_other_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    leave_torchrun()
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"} & os.environ.keys()
