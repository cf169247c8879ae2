"""`spin-pipeline preflight`: the memory of steps compared with pods and GPUs."""

from __future__ import annotations

from support.checks import Check, findings
from support.kubernetes_server import KubernetesServer
from support.scene import node

GPU = "nvidia.com/gpu"
ON_GPUS = ("--set", f"placement.accelerator={GPU}")
SEVEN = ("--set", "model.base=hf://absent/zephyr-7b-sft-full", "--set", "training.backend=deepspeed")


def test_a_small_model_fits(check: Check) -> None:
    ((verdict, message),) = findings(check()[1], "memory")
    assert verdict == "pass"
    assert message.startswith("memory at the peak, estimated: generate 0.6 GiB, ref-logprob 0.6 GiB")
    assert message.endswith("(the model by the built-in configuration of tiny-llama)")


def test_a_pod_that_is_too_small_fails_and_names_settings_to_change(check: Check) -> None:
    code, checks = check("--set", 'placement.score={cpu="1", memory="256Mi"}')
    assert code == 1
    messages = [message for verdict, message in findings(checks, "memory") if verdict == "fail"]
    assert [message.split(",")[0].split(" about")[0] for message in messages] == ["ref-logprob needs", "validate needs"]
    (remedy,) = {one["remedy"].split("; ")[1] for one in checks if one["subject"] == "memory"}
    assert remedy == "or hardware.memory_check = 'warn'"


def test_the_memory_check_can_be_a_warning_or_off(check: Check) -> None:
    small = ("--set", 'placement.score={cpu="1", memory="256Mi"}')
    code, checks = check(*small, "--set", "hardware.memory_check=warn")
    assert code == 0
    assert {verdict for verdict, _ in findings(checks, "memory")} == {"warn"}
    assert findings(check(*small, "--set", "hardware.memory_check=off")[1], "memory") == []


def test_gpu_memory_is_read_from_node_labels(check: Check, kubernetes: KubernetesServer) -> None:
    label = {"nvidia.com/gpu.memory": "24576"}
    kubernetes.put(node("gpus", cpu="64", memory="512Gi", gpu="8", labels=label))
    messages = [message for verdict, message in findings(check(*ON_GPUS, *SEVEN)[1], "memory") if verdict == "fail"]
    assert any("train-epoch needs about" in each and "of one GPU, there are 24.0 GiB" in each for each in messages)


def test_unknown_gpu_memory_is_a_warning(check: Check, kubernetes: KubernetesServer) -> None:
    kubernetes.put(node("gpus", cpu="64", memory="512Gi", gpu="8"))
    ((verdict, message),) = findings(check(*ON_GPUS)[1], "memory")
    assert verdict == "warn"
    assert message.endswith("how much a GPU has is not known")
    ((verdict, _),) = findings(check(*ON_GPUS, "--set", "hardware.gpu_memory_gib=80")[1], "memory")
    assert verdict == "pass"


def test_a_model_of_unknown_shape_is_left_to_prepare(check: Check) -> None:
    ((verdict, message),) = findings(check("--set", "model.base=hf://absent/model")[1], "memory")
    assert verdict == "warn"
    assert message.startswith("not estimated: model.base = 'hf://absent/model'")
