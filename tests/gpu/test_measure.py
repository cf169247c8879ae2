"""The script that `make gpu` runs, at its small size on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("measure.py")
KERNELS = ("spin_packed_varlen", "spin_packed_flex", "spin_packed")


def measured(tmp_path: Path, *options: str) -> tuple[int, list[dict[str, object]]]:
    """Exit code and findings of the script."""
    output = tmp_path / "findings.json"
    command = [sys.executable, str(SCRIPT), "--size", "tiny", "--device", "cpu", "--json", str(output), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(output.read_text("utf-8")) if output.exists() else []


@pytest.mark.usefixtures("warm_driver")
def test_every_part_passes_on_a_cpu(tmp_path: Path) -> None:
    code, findings = measured(tmp_path, "--limit", "840")
    assert not [finding for finding in findings if finding["is_right"] is False]
    assert code == 0
    parts = [finding["part"] for finding in findings]
    assert list(dict.fromkeys(parts)) == ["device", "parity", "training", "engine", "speed", "generation", "run"]
    checked = [(finding["part"], finding["what"]) for finding in findings if finding["is_right"]]
    assert checked == [
        ("parity", "aligned log-probabilities"),
        ("parity", "aligned gradients"),
        ("parity", "packed log-probabilities"),
        ("parity", "packed gradients"),
        *(("parity", f"{name} {what}") for name in KERNELS for what in ("log-probabilities", "gradients")),
        *(("parity", f"{name} bf16") for name in ("aligned", *KERNELS)),
        ("training", "float32"),
        ("training", "bf16"),
        ("engine", "log-probabilities"),
        ("run", "torch"),
    ]


def test_a_part_whose_time_is_up_is_a_failure(tmp_path: Path) -> None:
    code, (finding,) = measured(tmp_path, "--limit", "0", "--parts", "device")
    assert code == 1
    assert finding == {"part": "device", "what": "part", "value": finding["value"], "is_right": False}


@pytest.mark.gpu
def test_every_part_passes_on_a_gpu(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    assert subprocess.run([sys.executable, str(SCRIPT)], check=False).returncode == 0
