"""A policy written as a stream is the policy that transformers saves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from spin_components.model.compute import Compute
from spin_components.model.loading import load_model, save_policy
from spin_components.model.weight_files import WeightFiles
from spin_components.settings.run import ModelSettings
from spin_components.settings.training import TrainingSettings
from spin_components.training.publishing import write_policy
from spin_components.training.torch_backend import TorchBackend
from support.families import CONFIGS, OTHERS, model_of, save_family

CPU = Compute(torch.device("cpu"), "float32")


class OneOf(TorchBackend):
    """One of several ranks that all hold the whole model."""

    def __init__(self, model: object, rank: int, ranks: int) -> None:
        super().__init__(model, TrainingSettings(), CPU)
        self.rank, self.ranks = rank, ranks


def weights_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("family", [*CONFIGS, *OTHERS])
def test_the_files_are_those_of_save_pretrained(family: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    save_family(family, base)
    model = load_model(base, ModelSettings(base=str(base)))
    save_policy(model, model.state_dict(), base, tmp_path / "expected")
    write_policy(OneOf(model, 0, 1), base, tmp_path / "found")
    names = sorted(path.name for path in (tmp_path / "expected").iterdir())
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == names
    for name in names:
        assert (tmp_path / "found" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes(), name

    expected = weights_of(tmp_path / "expected")
    limit = sum(tensor.nbytes for tensor in expected.values()) // 5
    for rank in range(2):
        write_policy(OneOf(model, rank, 2), base, tmp_path / f"rank-{rank}", max_bytes=limit)
    parts = [weights_of(tmp_path / f"rank-{rank}") for rank in range(2)]
    assert parts[0] and parts[1]
    assert not parts[0].keys() & parts[1].keys()
    assert_equal(parts[0] | parts[1], expected)


def test_a_file_holds_no_more_than_its_limit_or_one_group_of_weights(tmp_path: Path) -> None:
    model = model_of("llama")
    sizes = {name: parameter.nbytes for name, parameter in model.named_parameters()}
    largest = max(sizes.values())
    files = list(WeightFiles(model, 2 * largest))
    assert len(files) > 2
    assert {name for file in files for name in file.weights} == set(sizes)
    for file in files:
        assert sum(sizes[name] for name in file.weights) <= 2 * largest
    alone = list(WeightFiles(model, 1))
    assert [len(file.weights) for file in alone] == [1] * len(sizes)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "llama4_text"])
def test_experts_are_converted_layer_by_layer_at_most(family: str, tmp_path: Path) -> None:
    save_family(family, tmp_path)
    model = load_model(tmp_path, ModelSettings(base=str(tmp_path)))
    groups = [group for file in WeightFiles(model) for group in file.groups]
    layers = [{name.split(".")[2] for name in group if ".layers." in name} for group in groups]
    assert max(map(len, layers)) == 1


def test_an_index_names_the_file_of_every_weight(tmp_path: Path) -> None:
    base = tmp_path / "base"
    model = model_of("llama")
    model.save_pretrained(base)
    write_policy(OneOf(model, 0, 1), base, tmp_path / "policy", max_bytes=20_000)
    index = json.loads((tmp_path / "policy/model.safetensors.index.json").read_text("utf-8"))
    stored: dict[str, str] = {}
    for name in set(index["weight_map"].values()):
        with safe_open(tmp_path / "policy" / name, framework="pt") as file:
            stored |= dict.fromkeys(file.keys(), name)
    assert index["weight_map"] == stored
    assert index["metadata"]["total_size"] == sum(parameter.nbytes for parameter in model.parameters())
    again = load_model(tmp_path / "policy", ModelSettings(base=str(base)))
    assert_equal(again.state_dict(), model.state_dict())
