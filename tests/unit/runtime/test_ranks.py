"""What ranks take of a machine, and what they report."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from spin_components.errors import DataError
from spin_components.runtime.ranks import launch, leave_torchrun, take_gpus, take_turns
from support.started import started

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
def module(warm_python: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
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


_SLEEPING = r"""
import os, sys, time
from pathlib import Path
from spin_components.runtime.ranks import begin_rank

rank, _ = begin_rank()
os.write(1, b"%d\n" % rank)  # at once: what two ranks print may mix
time.sleep(3600)
"""
_LAUNCHING = """
from pydantic import BaseModel
from spin_components.runtime.ranks import launch

class Job(BaseModel):
    pass

launch("sleeping", Job(), 2, where="the test")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems look only twice a second")
def test_ranks_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "sleeping.py").write_text(_SLEEPING, encoding="utf-8")
    (tmp_path / "launching.py").write_text(_LAUNCHING, encoding="utf-8")
    command = [sys.executable, "-m", "launching"]
    with started(command, stdout=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert sorted(process.stdout.readline() for _ in range(2)) == [b"0\n", b"1\n"]
        process.kill()
        assert process.stdout.read() == b"", "the pipe is at its end once no rank has it"


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


def test_each_number_goes_to_the_rank_that_is_free_first(tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    quick, slow = take_turns(job, 5), take_turns(job, 5)
    assert [next(quick), next(slow), next(quick), next(quick)] == [0, 1, 2, 3]
    assert list(quick) == [4]
    assert list(slow) == []
