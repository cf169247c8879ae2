"""Earlier runs in storage: digests of their data, their order, and whether data is new."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spin_components.errors import AlreadyTrainedError, ConfigError
from spin_components.store import layout
from spin_components.store.digests import digest_file
from spin_components.store.open import open_run
from spin_pipeline.cluster.retrain import best_model, check_new, data_digest, earlier_runs, recorded_digest
from spin_pipeline.cluster.submission import Submission
from spin_pipeline.config import check_settings
from support.kfp_server import KfpServer


def settings_of(train: Path | str, validation: str = "") -> Any:
    """A configuration with the given data."""
    return check_settings(
        {"model": {"base": "hf://org/name"}, "data": {"train": str(train), "validation": validation}}, source="the test"
    )


def record(folder: Path, data: Path, created_at: str, state: str = "done") -> None:
    """Write the files of a run that these tests need."""
    folder.mkdir(parents=True)
    digest = digest_file(data).model_dump()
    with open_run(str(folder)) as run:
        run.write_json(
            layout.RUN,
            {
                "settings": {"data": {"train": str(data)}},
                "data": {"train": {"uri": str(data), "files": {data.name: digest}}},
                "created_at": created_at,
            },
        )
        run.write_json(layout.ATTEMPT, {"started": 0.0})
        if state == "done":
            facts = {
                "iteration": 0,
                "checkpoint_uri": "x",
                "val_loss": 1.0,
                "acc": None,
                "rewards_actual_mean": None,
                "rewards_generated_mean": None,
                "num_pairs": 1,
                "decision": "done",
                "work_s": 1.0,
            }
            run.write_json(layout.checkpoint(0), {"step": "checkpoint", "inputs": {}, "facts": facts})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data file, which is not parsed here."""
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n')
    return path


def test_a_digest_depends_on_the_content_and_not_the_address(data: Path, tmp_path: Path) -> None:
    record(tmp_path / "runs/one", data, "2026-01-01")
    [earlier] = earlier_runs(str(tmp_path / "runs"))
    digest = data_digest(settings_of(data))
    assert recorded_digest(earlier.record) == digest
    moved = data.rename(tmp_path / "moved.jsonl")
    assert data_digest(settings_of(moved)) == digest
    moved.write_text("other\n")
    assert data_digest(settings_of(moved)) != digest
    assert data_digest(settings_of(moved, str(moved))) != data_digest(settings_of(moved)), "validation data is included"
    assert data_digest(settings_of("builtin:stdlib-docstrings")) == data_digest(
        settings_of("builtin:stdlib-docstrings")
    )


def test_runs_are_found_at_any_depth_the_newest_first(data: Path, tmp_path: Path) -> None:
    for name, day in (("b", "2026-01-02"), ("a/deep", "2026-01-03"), ("c", "2026-01-01")):
        record(tmp_path / "runs" / name, data, day)
    (tmp_path / "runs/damaged").mkdir()
    (tmp_path / "runs/damaged/run.json").write_text("{}")
    names = [Path(earlier.uri).name for earlier in earlier_runs(str(tmp_path / "runs"))]
    assert names == ["deep", "b", "c"]
    assert earlier_runs(str(tmp_path / "nowhere")) == []


def test_only_finished_runs_count_as_trained(data: Path, tmp_path: Path) -> None:
    digest = data_digest(settings_of(data))
    record(tmp_path / "runs/broken", data, "2026-01-01", state="interrupted")
    check_new(digest, str(tmp_path / "runs"))
    record(tmp_path / "runs/whole", data, "2026-01-02T03:04:05.678")
    with pytest.raises(
        AlreadyTrainedError, match=r"runs/whole has trained on this data.*2026-01-02T03:04:05\)"
    ) as caught:
        check_new(digest, str(tmp_path / "runs"))
    assert caught.value.exit_code == 4
    check_new("another", str(tmp_path / "runs"))


def test_a_folder_without_a_finished_run_gives_no_model_and_a_run_without_iterations_is_refused(
    data: Path, tmp_path: Path
) -> None:
    record(tmp_path / "runs/broken", data, "2026-01-01", state="interrupted")
    assert best_model(str(tmp_path / "runs")) is None
    assert best_model(str(tmp_path / "nowhere")) is None
    with pytest.raises(ConfigError, match=r"no iteration of .* is finished"):
        best_model(str(tmp_path / "runs/broken"))


def test_earlier_runs_are_searched_in_the_folder_of_the_new_run() -> None:
    def folder(uri: str, continue_from: str = "") -> str:
        settings = check_settings(
            {"run": {"uri": uri}, "model": {"base": "x"}, "data": {"train": "x"}}, source="the test"
        )
        return Submission(settings, continue_from=continue_from).runs_folder

    assert folder("s3://bucket/retrain/{time}") == "s3://bucket/retrain"
    assert folder("s3://bucket/retrain/run-{time}") == "s3://bucket/retrain"
    assert folder("s3://bucket/one") == ""
    assert folder("s3://bucket/one", "s3://bucket/others") == "s3://bucket/others"


def test_submitting_needs_no_torch(kfp: KfpServer, data: Path) -> None:
    code = (
        "import sys; from spin_pipeline.cli import main; "
        "command = ['submit', '--config', 'tiny', '--run-uri', 's3://bucket/x', '--once-for-data', '--wait', "
        f"'--set', 'data.train={data}']; "
        "assert main(command) == 0; "
        "heavy = {'torch', 'transformers', 'vllm', 'deepspeed', 'safetensors'}; "
        "sys.exit(sorted(heavy & sys.modules.keys()) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
