from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spin_components.machine import memory_bytes
from spin_components.memory.machines import gpu_sizes, has_bf16_products, pod_machine, this_machine
from spin_components.settings.attempt import StepResources
from spin_components.settings.settings import Settings

GIB = 2**30


def settings_of(**sections: dict[str, Any]) -> Settings:
    return Settings.model_validate({"model": {"base": "m"}, "data": {"train": "d"}, **sections})


def lay_out(root: Path, files: dict[str, str]) -> Path:
    meminfo = "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\nHugePages_Total:  0\n"
    for name, text in {"proc/meminfo": meminfo, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "ascii")
    return root


def test_without_a_cgroup_the_limit_is_the_machines_memory(tmp_path: Path) -> None:
    assert memory_bytes(lay_out(tmp_path, {})) == (16 * GIB, 8 * GIB)


def test_cgroup_v2_limits_of_parents_apply(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/pods/pod"
    files = {
        "proc/self/cgroup": "0::/pods/pod\n",
        f"{group}/memory.max": "max\n",
        "sys/fs/cgroup/pods/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/pods/memory.current": f"{3 * GIB}\n",
        "sys/fs/cgroup/pods/memory.stat": f"anon 5\ninactive_file {GIB}\n",
    }
    assert memory_bytes(lay_out(tmp_path, files)) == (4 * GIB, 2 * GIB)  # 4 - 3, and 1 that may be dropped


def test_cgroup_v1_limits_apply(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/job"
    files = {
        "proc/self/cgroup": "5:cpu:/\n4:memory:/job\n",
        f"{group}/memory.limit_in_bytes": f"{2 * GIB}\n",
        f"{group}/memory.usage_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
    }
    assert memory_bytes(lay_out(tmp_path, files)) == (2 * GIB, GIB)


def test_memory_is_0_where_it_is_not_known(tmp_path: Path) -> None:
    assert memory_bytes(tmp_path) == (0, 0)


@pytest.mark.parametrize(
    ("text", "number"), [("16Gi", 16 * GIB), ("64G", 64 * 10**9), ("500Mi", 500 * 2**20), ("7", 7), ("2Ti", 2 * 2**40)]
)
def test_memory_quantities_are_parsed(text: str, number: int) -> None:
    assert StepResources(memory=text).memory_bytes == number


def test_a_pods_machine_has_its_requested_memory_and_gpu() -> None:
    place = {"accelerator": "nvidia.com/gpu", "train": {"memory": "64Gi"}, "score": {"memory": "8Gi"}}
    machine = pod_machine(settings_of(placement=place), 80 * GIB)
    assert (machine.device, machine.is_bf16, machine.device_bytes) == ("cuda", True, 80 * GIB)
    assert machine.host_bytes == {
        "generate": 16 * GIB,
        "ref-logprob": 8 * GIB,
        **dict.fromkeys(("warm-up", "train-epoch", "control"), 64 * GIB),
        "validate": 8 * GIB,
    }
    overridden = pod_machine(settings_of(placement=place, hardware={"gpu_memory_gib": 40}), 80 * GIB)
    assert overridden.device_bytes == 40 * GIB
    assert pod_machine(settings_of(), 80 * GIB).device == "cpu"


def write_tool(folder: Path, script: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_gpu_sizes_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    write_tool(tmp_path, 'test "$1" = --query-gpu=memory.total && echo 81559 && echo 40960')
    assert gpu_sizes() == [81559 * 2**20, 40960 * 2**20]
    machine = this_machine(settings_of())
    assert (machine.device, machine.device_bytes) == ("cuda", 40960 * 2**20)
    assert this_machine(settings_of(hardware={"device": "cpu"})).device == "cpu"
    write_tool(tmp_path, "echo 'No devices were found'; exit 6")
    assert gpu_sizes() == []


def test_bf16_support_is_read_from_the_cpu_flags(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\nflags : fpu avx512f amx_tile\n")
    assert has_bf16_products(path)
    path.write_text("processor : 0\nflags : fpu avx512f\n")
    assert not has_bf16_products(path)
    assert not has_bf16_products(tmp_path / "absent")
