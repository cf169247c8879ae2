"""Number of processes that share a step: by GPUs, by memory, and by what they save."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spin_components.memory import processes
from spin_components.memory.check import check_memory
from spin_components.memory.machines import pod_machine
from spin_components.memory.processes import divide, in_copies
from spin_components.memory.shape import shape_of_config
from spin_components.memory.work import Machine, Workload, longest_allowed
from spin_components.settings.settings import Settings

SHAPE = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
"""Mistral 7B, 7.24e9 parameters."""

GIB = 2**30


def settings_of(**sections: dict[str, Any]) -> Settings:
    hardware = {"ranks": 8, **sections.pop("hardware", {})}
    base = {"model": {"base": "-"}, "data": {"train": "-"}, "training": {"precision": "bf16"}}
    return Settings.model_validate({**base, "hardware": hardware, **sections})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE), encoding="utf-8")
    return tmp_path


def on_machine(monkeypatch: pytest.MonkeyPatch, device: Any, gib: float) -> None:
    machine = Machine(device, True, 80 * 10**9, dict.fromkeys(("generate", "ref-logprob", "validate"), int(gib * GIB)))
    monkeypatch.setattr(processes, "this_machine", lambda settings: machine)


@pytest.mark.parametrize(("num_gpus", "expected"), [(8, 8), (4, 4), (1, 1)])
def test_there_is_a_process_for_each_gpu_up_to_the_ranks(
    monkeypatch: pytest.MonkeyPatch, folder: Path, num_gpus: int, expected: int
) -> None:
    on_machine(monkeypatch, "cuda", 500)
    found = divide(settings_of(), folder, "ref-logprob", num_tokens=10**8, num_gpus=num_gpus).processes
    assert found == expected


def test_an_engine_takes_as_many_gpus_as_it_is_divided_among(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    on_machine(monkeypatch, "cuda", 500)
    settings = settings_of(generation={"tensor_parallel": 4, "engine": "vllm"})
    assert divide(settings, folder, "generate", num_tokens=10**8, num_gpus=8).processes == 2


def test_processes_on_gpus_load_one_after_the_other(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    # 27 GiB of weights once, and 3 GiB a process: (0.9 * 48 - 27) / 3 = 5.4
    on_machine(monkeypatch, "cuda", 48)
    assert divide(settings_of(), folder, "ref-logprob", num_tokens=10**8, num_gpus=8).processes == 5


def test_processes_on_a_cpu_hold_a_model_each(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    settings = settings_of(training={"precision": "float32"})
    on_machine(monkeypatch, "cpu", 500)
    shape = shape_of_config(SHAPE, what="the test")
    work = Workload(settings, Machine("cpu", True), longest_allowed(settings))
    one = in_copies(shape, replace(work, settings=settings_of(hardware={"ranks": 1})), "ref-logprob").host_bytes
    on_machine(monkeypatch, "cpu", 3.5 * one / 0.9 / GIB)
    assert divide(settings, folder, "ref-logprob", num_tokens=10**9, num_gpus=0).processes == 3


def test_little_work_is_done_by_one_process(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    # 2 * 7.24e9 * 100,000 operations are 14 s of a GPU: less than a process takes to start
    on_machine(monkeypatch, "cuda", 500)
    assert divide(settings_of(), folder, "ref-logprob", num_tokens=10**5, num_gpus=8).processes == 1


def test_gpus_that_a_pods_memory_leaves_idle_are_a_warning() -> None:
    pods = {"generate": {"memory": "500Gi"}, "train": {"memory": "900Gi"}, "score": {"memory": "48Gi"}}
    settings = settings_of(placement={"accelerator": "nvidia.com/gpu", **pods})
    work = Workload(settings, pod_machine(settings, 80 * 10**9), longest_allowed(settings))
    warnings: list[str] = []
    estimates = check_memory(shape_of_config(SHAPE, what="the test"), work, warnings.append)
    assert [each.processes for each in estimates if each.step in ("ref-logprob", "validate")] == [5, 5]
    assert any("ref-logprob can use 5 of its 8 GPUs, validate can use 5 of its 8 GPUs" in each for each in warnings)
