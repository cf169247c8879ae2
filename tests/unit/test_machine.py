from __future__ import annotations

import platform
from pathlib import Path

from spin_components.machine import describe, processor


def test_the_processor_is_named_as_the_system_does(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: Abacus 9 @ 3.0GHz\nmodel name\t: Other\n")
    assert processor(tmp_path) == "Abacus 9 @ 3.0GHz"


def test_a_processor_without_a_name_is_its_architecture(tmp_path: Path) -> None:
    assert processor(tmp_path) == platform.machine()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nCPU part\t: 0xd0c\n")
    assert processor(tmp_path) == platform.machine()


def test_a_step_that_computes_nothing_tells_cores_alone() -> None:
    assert describe(0).keys() == {"num_cores", "num_gpus"}
