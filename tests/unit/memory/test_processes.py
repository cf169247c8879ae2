"""Number of processes that share a step: by GPUs, by memory, and by what they save."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spin_components.memory import processes
from spin_components.memory.check import check_memory, estimate_steps
from spin_components.memory.fit import shortages
from spin_components.memory.machines import pod_machine
from spin_components.memory.processes import Division, divide, in_copies
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


BIG = {**SHAPE, "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
BIG |= {"num_attention_heads": 64}
"""Llama 3's 70B, 7.06e10 parameters: 141 GB in bf16, on GPUs of 80 GB."""


def big(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(BIG), encoding="utf-8")
    return folder


def test_processes_divide_a_model_that_one_gpu_does_not_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_machine(monkeypatch, "cuda", 500)
    folder = big(tmp_path)
    for step in ("ref-logprob", "validate"):  # whatever time it saves
        assert divide(settings_of(), folder, step, num_tokens=10, num_gpus=8) == Division(8, is_sharded=True)
    assert not divide(settings_of(), folder, "ref-logprob", num_tokens=10**8, num_gpus=1).is_sharded
    off = settings_of(hardware={"shard_scoring": "off"})
    assert not divide(off, folder, "ref-logprob", num_tokens=10**8, num_gpus=8).is_sharded


def test_a_model_that_one_gpu_holds_is_divided_only_where_the_settings_say_so(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    on_machine(monkeypatch, "cuda", 500)
    assert divide(settings_of(), folder, "ref-logprob", num_tokens=10**8, num_gpus=8) == Division(8)
    on = settings_of(hardware={"shard_scoring": "on"})
    assert divide(on, folder, "ref-logprob", num_tokens=10, num_gpus=8) == Division(8, is_sharded=True)
    assert divide(on, folder, "generate", num_tokens=10**8, num_gpus=8) == Division(8)


PODS = {kind: {"memory": "900Gi"} for kind in ("generate", "train", "score")}


def refusal(**sections: dict[str, Any]) -> str:
    """What the memory check says of scoring with the big model on pods."""
    settings = settings_of(
        placement={"accelerator": "nvidia.com/gpu", **PODS}, training={"zero_stage": 3, "precision": "bf16"}, **sections
    )
    work = Workload(settings, pod_machine(settings, 80 * 10**9), longest_allowed(settings))
    found = shortages(estimate_steps(shape_of_config(BIG, what="the test"), work), work)
    return next((str(each) for each in found if each.message.startswith("ref-logprob")), "")


def test_what_lets_a_big_model_be_scored_is_said() -> None:
    engines = {"tensor_parallel": 8, "engine": "vllm"}
    assert refusal(generation={**engines, "shards": 4}) == "", "a scoring pod has as many GPUs as an engine"
    assert "hardware.shard_scoring = 'on', with which a ref-logprob pod has 8 GPUs" in refusal(generation={"shards": 8})
    assert refusal(generation={"shards": 8}, hardware={"shard_scoring": "on"}) == ""
    assert "hardware.shard_scoring = 'auto'" in refusal(hardware={"shard_scoring": "off"})
    assert "hardware.ranks above 2" in refusal(hardware={"ranks": 2})
