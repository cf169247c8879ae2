"""The working process of every step killed twice in a row: the run on one machine ends with the same bits."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from faults.ends import read_end
from spin_components.record.events import read_events, read_repeats
from spin_components.store.local import LocalRun
from spin_pipeline.runs.status import read_status
from support.warm_spin import SPIN

STEPS = 7
"""prepare, validate the base, generate, ref-logprob, train-epoch, validate, checkpoint."""

# Python imports a module of this name as it starts. A process that has opened a step's event log kills itself where it
# would store the step's first output, as often as KILLS says for each step.
KILLER = """
import os, signal, sys
from pathlib import Path

tally, most, only = Path(os.environ["KILLED"]), int(os.environ["KILLS"]), os.environ["ONLY"]
step = {}

def look(event, arguments):
    path = str(arguments[0]) if event == "open" else ""
    if "/events/" in path and "-repeats-" not in path:
        step[os.getpid()] = path.rpartition("/")[2].partition("-")[2].rpartition("-")[0]
    if event == "os.rename" and os.getpid() in step:
        name, target = step[os.getpid()], os.fsdecode(arguments[1])
        if target.endswith("lease.json") or not target.endswith((".parquet", ".json", "policy")) or only not in name:
            return
        with open(tally / name, "ab") as file:
            file.write(b"x")
            number = file.tell()
        if number <= most:
            os.kill(os.getpid(), signal.SIGKILL)

if os.environ.get("KILLED"):
    sys.addaudithook(look)
"""


def run(folder: Path, model: Path, questions: Path, killer: Path, *, kills: int, only: str = "") -> int:
    """Run one iteration of one epoch; returns the exit code."""
    settings = [
        f"model.base={model}",
        f"data.train={questions}",
        "data.validation_size=4",
        "data.max_train_records=8",
        "spin.max_iterations=1",
        "spin.max_epochs=1",
        "generation.max_new_tokens=4",
        "validation.num_samples=1",
        "hardware.device=cpu",
        "hardware.threads=1",
        "cluster.retries=2",
    ]
    tally = folder.with_name(f"{folder.name}-killed")
    tally.mkdir()
    command = [*SPIN, "run", "--config", "tiny", "--run-uri", str(folder)]
    command += [part for setting in settings for part in ("--set", setting)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(killer), os.environ.get("PYTHONPATH", "")]),
        "SPIN_RETRY_S": "0.01",
        "KILLED": str(tally),
        "KILLS": str(kills),
        "ONLY": only,
    }
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode


@pytest.mark.usefixtures("warm_driver")
def test_steps_killed_twice_in_a_row_end_with_the_same_bits(
    tmp_path: Path, tiny_llama: Path, question_file: Path
) -> None:
    killer = tmp_path / "killer"
    killer.mkdir()
    (killer / "sitecustomize.py").write_text(KILLER, encoding="utf-8")
    killed = LocalRun(tmp_path / "killed")
    assert run(killed.root, tiny_llama, question_file, killer, kills=0) == 0
    undisturbed = read_end(killed)
    for folder in (killed.root, tmp_path / "killed-killed"):
        shutil.rmtree(folder)  # the address is part of what is compared
    assert run(killed.root, tiny_llama, question_file, killer, kills=2) == 0
    assert len(list((tmp_path / "killed-killed").iterdir())) == STEPS
    assert len(read_repeats(killed)) == 2 * STEPS
    assert read_status(killed.uri).state == "done"
    assert read_end(killed).differences(undisturbed) == []
    page = (killed.read("report/index.html") or b"").decode()
    assert "train-epoch was begun again, repeat 2 of 2: was ended by SIGKILL (out of memory?)" in page

    # a third time is past the retries
    failed = LocalRun(tmp_path / "failed")
    assert run(failed.root, tiny_llama, question_file, killer, kills=3, only="generate") == 1
    status = read_status(failed.uri)
    assert (status.state, status.failure and status.failure["step"]) == ("failed", "generate")
    assert "was ended by SIGKILL (out of memory?), 3 times" in str(status.failure)
    assert [event["step"] for event in read_events(failed) if event["kind"] == "fail"] == ["generate"]
