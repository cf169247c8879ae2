"""How large a run becomes as Argo's object."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from spin_pipeline.cli import main
from spin_pipeline.config import load_settings
from spin_pipeline.dag import build, shape_of
from spin_pipeline.deploy.workflow_size import size_warning, workflow_kib


def test_eight_shards_by_six_iterations_by_two_epochs_fit() -> None:
    settings = load_settings("tiny", ["generation.shards=8", "spin.max_iterations=6", "spin.max_epochs=2"])
    pipeline, num_tasks = build(settings, settings.cluster), shape_of(settings, settings.cluster).num_tasks
    assert num_tasks == 3 + 6 * (2 * 8 + 2 * 2 + 1)
    assert workflow_kib(num_tasks, pipeline) < 900
    assert size_warning(num_tasks, pipeline) == ""


def test_prepare_may_choose_as_many_shards_as_argo_has_room_for() -> None:
    settings = load_settings("zephyr-7b", ["generation.shards=0"])
    shape = shape_of(settings, settings.cluster)
    most, limit = shape.as_compiled()["max_shards"], 183  # tasks: (1024 - 200) KiB / 4.5 KiB
    assert replace(shape, shards=most).num_tasks <= limit < replace(shape, shards=most + 1).num_tasks
    assert shape_of(settings).as_compiled()["max_shards"] == 256, "no limit but the setting's on one machine"
    assert "max_shards" not in shape_of(load_settings("zephyr-7b")).as_compiled()


def test_a_run_that_would_become_too_large_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["--set=generation.shards=32", "--set=spin.max_iterations=4", "--set=spin.max_epochs=1"]
    assert main(["compile", "--config", "tiny", *sets, "-o", str(tmp_path / "spin.yaml")]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "271 tasks)" in output  # 3 + 4 * (2 * 32 + 2 + 1)
    assert "warning: a run of all 271 tasks would reach about 1." in output
    assert "lower generation.shards" in output
