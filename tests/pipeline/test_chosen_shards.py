"""A run whose number of shards `prepare` chooses."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from spin_components.record.history import read_history
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import Manifest, read_manifest
from spin_pipeline.runs.reproduction.plan import plan
from support.warm_spin import SPIN


def run(folder: Path, model: Path, questions: Path, *settings: str) -> tuple[LocalRun, Manifest]:
    """Run one iteration of one epoch."""
    settings = (
        *(f"model.base={model}", f"data.train={questions}", "data.validation_size=4", "data.max_train_records=8"),
        *("spin.max_iterations=1", "spin.max_epochs=1", "generation.max_new_tokens=4", "validation.num_samples=1"),
        *("hardware.device=cpu", "hardware.threads=1", *settings),
    )
    command = [*SPIN, "run", "--config", "tiny", "--run-uri", str(folder)]
    command += [part for setting in settings for part in ("--set", setting)]
    subprocess.run(command, check=True, capture_output=True)
    done = LocalRun(folder)
    return done, read_manifest(done, layout.DATA_MANIFEST)


@pytest.mark.usefixtures("warm_driver")
def test_a_run_plays_as_many_shards_as_prepare_chooses(tmp_path: Path, tiny_llama: Path, question_file: Path) -> None:
    chosen, data = run(tmp_path / "chosen", tiny_llama, question_file, "generation.shards=0", "data.shard_tokens=300")
    number = data.facts["num_shards"]
    assert 1 < number <= 8
    assert data.inputs["generation.shards"] == 0
    assert data.inputs["data.shard_tokens"] == 300
    planned = plan(chosen, read_history(chosen), str(tmp_path / "again"), None).settings
    assert planned.generation.shards == number, "a reproduction has the number that was chosen"
    fixed, same = run(tmp_path / "fixed", tiny_llama, question_file, f"generation.shards={number}")
    assert data.outputs == same.outputs
    assert "data.shard_tokens" not in same.inputs
    epoch, policy = layout.epoch_manifest(0, 0), f"{layout.epoch(0, 0)}/policy"
    trained, expected = (read_manifest(made, epoch).outputs_below(policy) for made in (chosen, fixed))
    assert trained == expected
