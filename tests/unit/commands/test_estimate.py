"""`spin-pipeline estimate`, on the shipped configurations and on a model's config.json."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spin_components.memory.shape import KNOWN
from spin_pipeline.cli import main

Estimate = Callable[..., tuple[int, dict[str, Any]]]
GIB = 2**30


@pytest.fixture
def estimate(capsys: pytest.CaptureFixture[str]) -> Estimate:
    """Runs the command with `--json`; returns its exit code and parsed output."""

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        code = main(["estimate", "--json", *arguments])
        return code, json.loads(capsys.readouterr().out)

    return run


def steps(value: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["step"]: each for each in value["steps"]}


def test_the_papers_run_fits_its_gpus_and_is_compute_bound(estimate: Estimate) -> None:
    code, value = estimate("--config", "zephyr-7b", "--gpu", "a100-80g")
    assert (code, value["shortages"]) == (0, [])
    # of 7.24e9 parameters, the embedding in float32 and linear layers in bf16
    parts = steps(value)["ref-logprob"]["device"]
    assert parts["weights"] == 2 * 7_241_732_096 + 2 * 32000 * 4096
    assert "bf16 copies of weights" not in parts
    assert {bound["step"]: bound["by"] for bound in value["bounds"]} == {
        "generate": "memory",
        "ref-logprob": "compute",
        "train-epoch": "compute",
        "validate": "compute",
    }


def test_70b_fits_in_all_steps_where_eight_gpus_divide_it_to_score(estimate: Estimate) -> None:
    code, value = estimate("--config", "70b", "--gpu", "h100-80g")
    assert (code, value["shortages"]) == (0, [])
    embedding = 128256 * 8192
    for step in ("ref-logprob", "validate"):
        assert steps(value)[step]["processes"] == 8
        parts = steps(value)[step]["device"]
        assert parts["weights"] == (2 * 70_553_706_496 + 2 * embedding) // 8
        two_blocks = 2 * 2 * (70_553_706_496 - 2 * embedding) // 80
        assert parts["gathered weights"] == 4 * embedding + 2 * embedding + two_blocks
    # 32 ranks share weights, gradients and one number of RMSProp's state
    parts = steps(value)["train-epoch"]["device"]
    assert [parts[name] for name in ("weights", "gradients", "optimizer state")] == [4 * 70_553_706_496 // 32] * 3
    assert next(bound["by"] for bound in value["bounds"] if bound["step"] == "train-epoch") == "network"


def test_a_model_is_estimated_from_its_config_alone(estimate: Estimate, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(KNOWN["Meta-Llama-3-70B-Instruct"]))
    arguments = ("--gpu", "h100-80g", "--set", "model.base=absent/model")
    by_file = estimate("--config", "70b", *arguments, "--model-config", str(path))
    assert by_file == estimate("--config", "70b", "--gpu", "h100-80g")


def test_a_model_without_a_readable_shape_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--config", "70b", "--set", "model.base=absent/model"]) == 2
    assert "model.base = 'absent/model': its shape cannot be read from here" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("[]")
    assert main(["estimate", "--model-config", str(tmp_path / "config.json")]) == 2
    assert "expected a table, found list" in capsys.readouterr().err


def test_the_table_shows_steps_sizes_and_shortages(capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--set", "training.micro_batch_size=8", "--set", "hardware.gpu_memory_gib=24"]
    assert main(["estimate", "--config", "zephyr-7b", "--gpu", "a100-80g", *more]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith(
        "7.24 billion parameters, by the built-in configuration of zephyr-7b-sft-full; on pods with A100"
    )
    assert "train-epoch is bound by compute: 8 pairs of 3072 tokens a rank take compute" in printed
    assert "train-epoch needs about" in printed
    assert "there are 24.0 GiB (activations" in printed
    assert "Try training.micro_batch_size below 8, or data.max_length below 2048" in printed


def test_the_time_of_steps_and_run_is_shown_for_a_gpu(capsys: pytest.CaptureFixture[str], estimate: Estimate) -> None:
    options = ("--config", "zephyr-7b", "--gpu", "h100-80g", "--prompts", "10000", "--lengths", "200,300,300")
    assert main(["estimate", *options]) == 0
    printed = capsys.readouterr().out
    assert "on 8 GPUs, within a factor of 2, for 10,000 prompts of 200 tokens with answers of 300" in printed
    _, value = estimate(*options)
    assert [each["step"] for each in value["times"]] == ["generate", "ref-logprob", "train-epoch", "validate"]
    _, more = estimate(*options, "--gpus", "4")
    assert more["times"][0]["one_s"] > value["times"][0]["one_s"]
    assert estimate("--config", "zephyr-7b")[1]["times"] == []


@pytest.mark.parametrize("option", ["--lengths=200,300", "--lengths=200,300,many", "--prompts=0", "--gpus=-1"])
def test_a_size_that_is_none_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["estimate", "--config", "zephyr-7b", "--gpu", "h200", option])
    assert exit_.value.code == 2
    assert "expected" in capsys.readouterr().err


def test_estimating_imports_nothing_heavy() -> None:
    code = (
        "import sys; from spin_pipeline.cli import main; main(['estimate', '--config', 'demo']);"
        "print(*[name for name in ('torch', 'transformers', 'vllm', 'deepspeed', 'kfp') if name in sys.modules], 'end')"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].strip() == "end"
