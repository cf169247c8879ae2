"""Adapters on a small model: training, files, merging and joining."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.packing import Prompted
from spin_components.errors import ConfigError, IntegrityError
from spin_components.memory.shape import num_trained, shape_of_folder
from spin_components.model.batch_layout import enable_packed_attention
from spin_components.model.compute import Compute
from spin_components.model.lora.files import Base, read_base, read_config, read_weights, write_adapter
from spin_components.model.lora.layers import adapter_parameters, add_trained, load_weights, merge, saved_config
from spin_components.model.lora.merging import joined
from spin_components.settings.training import LoraSettings, TrainingSettings
from spin_components.training.torch_backend import TorchBackend
from support import bounds

LORA = LoraSettings(r=3, alpha=6.0)
BASE = Base(uri="/base", sha256="0" * 64)
pytestmark = pytest.mark.usefixtures("in_float64")
GROUPS = [Prompted([5, 9, 11], ([7, 8], [30, 31, 32, 33])), Prompted([40, 41], ([12, 13, 14], [3]))]


def scores(model: Any) -> Tensor:
    with torch.no_grad():
        return answer_logprobs(model, GROUPS)


def assert_same_scores(found: Any, expected: Any) -> None:
    """To rounding: the longest answer has four tokens."""
    atol = bounds.of_logprob(expected, num_tokens=4)
    torch.testing.assert_close(scores(found), scores(expected), rtol=0.0, atol=atol)


def train(model: Any, num: int = 3) -> None:
    """Take a few large steps that raise the answers' log-probabilities."""
    backend = TorchBackend(model, TrainingSettings(optimizer="adamw"), Compute(torch.device("cpu"), "float32"))
    for _ in range(num):
        backend.backward(-answer_logprobs(model, GROUPS).sum())
        backend.clip_and_step(0.05)


def trained(model: Any, folder: Path, *, seed: int = 1, lora: LoraSettings = LORA) -> Any:
    """Add an adapter to a model, train it, and save it."""
    add_trained(model, lora, seed=seed)
    train(model)
    write_adapter(folder, saved_config(model), adapter_weights(model), BASE, like=folder.parent)
    return model


def adapter_weights(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in adapter_parameters(model).items()}


def test_a_new_adapter_leaves_outputs_bitwise_equal(make_random_llama: Callable[[], Any]) -> None:
    model = make_random_llama()
    before = scores(model)
    add_trained(model, LORA, seed=1)
    assert torch.equal(scores(model), before)
    assert type(model) is type(make_random_llama())


def test_only_the_adapter_changes_and_has_optimizer_state(make_random_llama: Callable[[], Any]) -> None:
    model = make_random_llama()
    add_trained(model, LORA, seed=1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    backend = TorchBackend(model, TrainingSettings(), Compute(torch.device("cpu"), "float32"))
    backend.backward(-answer_logprobs(model, GROUPS).sum())
    backend.clip_and_step(0.05)
    state = {part.name.partition("/")[2] for part in backend.optimizer_parts()}
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    # at the first step A has no gradient, since B is 0: only B moves, in each of 2 x 7 linear layers
    assert changed == {name for name in before if ".lora_B." in name}
    assert len(changed) == 14
    assert state == {name for name in before if ".lora_" in name}
    assert set(backend.trained_state()) == {name for name in before if ".lora_" in name}


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]], ids=str)
def test_the_estimate_counts_the_adapters_parameters(
    make_random_llama: Callable[[], Any], tmp_path: Path, targets: Any
) -> None:
    model, lora = make_random_llama(), LoraSettings(r=3, target_modules=targets)
    model.save_pretrained(tmp_path)
    add_trained(model, lora, seed=1)
    expected = sum(parameter.numel() for parameter in adapter_parameters(model).values())
    assert num_trained(shape_of_folder(tmp_path, what="the model"), lora) == expected


def test_merged_weights_score_as_the_unmerged_adapter(make_random_llama: Callable[[], Any], tmp_path: Path) -> None:
    model = trained(make_random_llama(), tmp_path / "adapter")
    merged = make_random_llama()
    before = scores(merged)
    names = list(merged.state_dict())
    merge(merged, tmp_path / "adapter")
    assert list(merged.state_dict()) == names
    assert_same_scores(merged, model)
    assert (scores(merged) - before).abs().max() > 0.1, "training must have changed the adapter"
    # by hand, for one layer: W + B A alpha / r
    name = "model.layers.0.self_attn.q_proj"
    weights = read_weights(tmp_path / "adapter")
    a, b = weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"]
    expected = make_random_llama().get_submodule(name).weight + b @ a * (6.0 / 3)
    # sums of three products, and one more; weights are below 10
    atol = bounds.of_sum([10.0] * 5, torch.float64)
    torch.testing.assert_close(merged.get_submodule(name).weight, expected, rtol=0.0, atol=atol)


def test_packing_with_an_adapter_gives_the_same_scores(make_random_llama: Callable[[], Any], tmp_path: Path) -> None:
    model = trained(make_random_llama(), tmp_path / "adapter")
    aligned = scores(model)
    packed = make_random_llama()
    assert enable_packed_attention(packed, Compute(torch.device("cpu"), "float32")) == ""
    add_trained(packed, LORA, seed=2)
    load_weights(packed, read_weights(tmp_path / "adapter"))
    torch.testing.assert_close(scores(packed), aligned, rtol=0.0, atol=bounds.of_logprob(model, num_tokens=4))


def test_a_restored_adapter_scores_bitwise_equal(make_random_llama: Callable[[], Any], tmp_path: Path) -> None:
    model = trained(make_random_llama(), tmp_path / "adapter")
    again = make_random_llama()
    add_trained(again, LORA, seed=99)
    load_weights(again, read_weights(tmp_path / "adapter"))
    assert torch.equal(scores(again), scores(model))
    assert read_base(tmp_path / "adapter") == BASE


def test_the_same_adapter_gives_the_same_files(make_random_llama: Callable[[], Any], tmp_path: Path) -> None:
    for name in ("one", "two"):
        trained(make_random_llama(), tmp_path / name)
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_adding_an_adapter_leaves_the_global_random_state(make_random_llama: Callable[[], Any]) -> None:
    first, second, third = (make_random_llama() for _ in range(3))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    add_trained(first, LORA, seed=1)
    assert torch.equal(torch.rand(3), expected)
    add_trained(second, LORA, seed=1)
    add_trained(third, LORA, seed=2)
    a = "model.layers.0.mlp.up_proj.lora_A.weight"
    assert torch.equal(adapter_weights(first)[a], adapter_weights(second)[a])
    assert not torch.equal(adapter_weights(first)[a], adapter_weights(third)[a])


def test_a_chain_of_adapters_joins_to_one_with_the_sum_of_ranks(
    make_random_llama: Callable[[], Any], tmp_path: Path
) -> None:
    trained(make_random_llama(), tmp_path / "0")
    policy = make_random_llama()
    merge(policy, tmp_path / "0")
    other = LoraSettings(r=2, alpha=1.0)
    trained(policy, tmp_path / "1", seed=2, lora=other)
    config, weights = joined([tmp_path / "0", tmp_path / "1"])
    assert config["r"] == config["lora_alpha"] == 5
    write_adapter(tmp_path / "both", config, weights, BASE, like=tmp_path)
    found = make_random_llama()
    merge(found, tmp_path / "both")
    assert_same_scores(found, policy)


def test_target_modules_are_shortened_where_that_is_unambiguous(
    make_random_llama: Callable[[], Any], tmp_path: Path
) -> None:
    trained(make_random_llama(), tmp_path / "all")
    layers = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert read_config(tmp_path / "all")["target_modules"] == layers
    assert read_config(tmp_path / "all")["base_model_name_or_path"] == "/base"
    some = LoraSettings(r=2, target_modules=["layers.1.self_attn.q_proj"])
    trained(make_random_llama(), tmp_path / "some", lora=some)
    assert read_config(tmp_path / "some")["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    assert len(read_weights(tmp_path / "some")) == 2


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["w_nothing"], r"target_modules = \['w_nothing'\] does not fit LlamaForCausalLM: .*w_nothing"),
        (["q_proj", "lm_head"], r"includes lm_head: embeddings and the output layer"),
        (["embed_tokens"], r"includes model\.embed_tokens"),
    ],
)
def test_layers_that_cannot_be_adapted_are_refused(
    make_random_llama: Callable[[], Any], targets: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        add_trained(make_random_llama(), LoraSettings(r=2, target_modules=targets), seed=0)


def test_an_adapter_of_another_model_is_refused(make_random_llama: Callable[[], Any], tmp_path: Path) -> None:
    trained(make_random_llama(), tmp_path / "adapter")
    other = make_random_llama()
    add_trained(other, LoraSettings(r=5), seed=0)
    with pytest.raises(IntegrityError, match=r"does not belong to this model: .* has the shape \(.*\), expected \("):
        load_weights(other, read_weights(tmp_path / "adapter"))
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text("utf-8")), "target_modules": ["nothing"]}), "utf-8")
    with pytest.raises(IntegrityError, match=r"the adapter does not belong to this model: .*nothing"):
        merge(make_random_llama(), tmp_path / "adapter")
    (tmp_path / "adapter" / "base.json").unlink()
    with pytest.raises(IntegrityError, match="does not name the adapter's base model"):
        read_base(tmp_path / "adapter")
