"""Ranks that divide a model's weights compute the log-probabilities of one process, bit by bit, and hold less."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.packing import Prompted
from spin_components.errors import DataError
from spin_components.model.compute import resolve_compute
from spin_components.model.frozen import WholeLoader
from spin_components.model.scoring import load_scored
from spin_components.runtime.ranks import launch
from spin_components.settings.settings import Settings
from support import bounds
from support.families import CONFIGS, OTHERS, SIZES, save_family
from support.sharded_ranks import ShardedJob

FAMILIES = [*CONFIGS, *OTHERS]
SOME = ["llama", "gemma3n_text", "mixtral"]
SMALL = 4096
"""Bytes of tensors that a process holds besides a model."""
GROUPS: list[tuple[list[int], list[list[int]]]] = [
    ([5, 6, 7, 8, 9], [[10, 11, 12, 2], [13, 14]]),
    ([20, 21], [[22, 23, 24, 25, 26, 2], [27]]),
    ([40, 41, 42], [[43, 44, 2], [45, 46, 47, 48]]),
]
WORK = {2: [GROUPS, []], 3: [GROUPS[:1], GROUPS[1:], []]}
"""Passes of each of two and of three ranks: some have more than others, and the last has none."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each family."""
    root = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        save_family(family, root / family)
    return {family: root / family for family in FAMILIES}


@pytest.fixture
def ranks_module(warm_python: None, monkeypatch: pytest.MonkeyPatch) -> str:
    paths = (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    return "support.sharded_ranks"


def settings_of(precision: str) -> Settings:
    tables: dict[str, Any] = {
        "model": {"base": "-"},
        "data": {"train": "-"},
        "training": {"precision": precision},
        "hardware": {"device": "cpu"},
    }
    return Settings.model_validate(tables)


def num_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def computed(model: Any, settings: Settings) -> list[list[float]]:
    """Log-probabilities of the groups, a pass each, as the ranks compute them."""
    compute = resolve_compute(settings.hardware, settings.training.precision)
    bounds.few_threads()
    with torch.inference_mode(), compute.autocast():
        return [answer_logprobs(model, [Prompted(prompt, answers)]).tolist() for prompt, answers in GROUPS]


@pytest.mark.parametrize(("ranks", "precision", "families"), [(2, "bf16", FAMILIES), (3, "float32", SOME)])
def test_ranks_that_divide_the_weights_compute_the_bits_of_one_process(
    folders: dict[str, Path], ranks_module: str, ranks: int, precision: str, families: list[str]
) -> None:
    settings = settings_of(precision)
    chosen = {family: folders[family] for family in families}
    outcomes = launch(
        ranks_module, ShardedJob(folders=chosen, groups=WORK[ranks], settings=settings), ranks, where="the test"
    )
    compute = resolve_compute(settings.hardware, precision)
    for family, folder in chosen.items():
        model = load_scored(folder, settings, compute, WholeLoader(compute)).eval()
        found = [row for outcome in outcomes for row in outcome[family]["logprobs"]]
        assert found == computed(model, settings), family
        parameters, buffers = list(model.parameters()), sum(map(num_bytes, model.buffers()))
        whole = sum(map(num_bytes, parameters))
        vectors = sum(num_bytes(each) for each in parameters if each.ndim < 2)
        for outcome in outcomes:
            sizes = outcome[family]
            # parts are filled up to one size, with less than a number for each parameter
            part = vectors + (whole - vectors) // ranks
            assert part <= sizes["held"] <= part + 4 * len(parameters), family
            # gloo's thread may hold what was gathered last until it has more to do
            most = SMALL + max(map(num_bytes, parameters))
            assert sizes["stored"] <= sizes["held"] + buffers + most, f"{family}: nothing else is held"
            assert sizes["left"] <= most, f"{family}: the model is freed"


def test_a_pass_gathers_two_blocks_and_what_is_outside_of_them(tmp_path: Path, ranks_module: str) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_hidden_layers": 8}))
    model.save_pretrained(tmp_path / "deep")
    job = ShardedJob(folders={"deep": tmp_path / "deep"}, groups=WORK[2], settings=settings_of("float32"))
    outcomes = launch(ranks_module, job, 2, where="the test")
    block = 4 * sum(each.numel() for each in model.model.layers[0].parameters() if each.ndim > 1)
    outside = 4 * (model.model.embed_tokens.weight.numel() + model.lm_head.weight.numel())
    assert outcomes[0]["deep"]["peak"] - outcomes[0]["deep"]["held"] == outside + 2 * block
    # a rank without work gathers one block after the other
    assert outcomes[1]["deep"]["peak"] <= outcomes[0]["deep"]["peak"]
    assert outcomes[0]["deep"]["peak"] < 4 * sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize("kept", ["model.embed_tokens.weight", "lm_head.weight"])
def test_a_tied_embedding_stays_float32(tmp_path: Path, ranks_module: str, kept: str) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "tied"
    LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights[kept] = weights.pop("model.embed_tokens.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = settings_of("bf16")
    compute = resolve_compute(settings.hardware, "bf16")
    expected = computed(load_scored(folder, settings, compute).eval(), settings)
    model = load_scored(folder, settings, compute, WholeLoader(compute)).eval()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, weights[kept])
    assert computed(model, settings) == expected
    outcomes = launch(
        ranks_module, ShardedJob(folders={"tied": folder}, groups=WORK[2], settings=settings), 2, where="the test"
    )
    assert outcomes[0]["tied"]["logprobs"] == expected
    assert outcomes[0]["tied"]["held"] == outcomes[1]["tied"]["held"]


def test_the_error_of_a_rank_ends_those_that_wait_in_a_gather(folders: dict[str, Path], ranks_module: str) -> None:
    job = ShardedJob(
        folders={"llama": folders["llama"]}, groups=[[], GROUPS], settings=settings_of("float32"), failing=1
    )
    with pytest.raises(DataError, match="this rank found a fault"):
        launch(ranks_module, job, 2, where="the test")


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_bf16_weights_have_the_bits_of_autocast(folders: dict[str, Path], family: str) -> None:
    settings = settings_of("bf16")
    compute = resolve_compute(settings.hardware, "bf16")
    expected = computed(load_scored(folders[family], settings, compute).eval(), settings)
    model = load_scored(folders[family], settings, compute, WholeLoader(compute)).eval()
    assert computed(model, settings) == expected
    assert all(not parameter.requires_grad for parameter in model.parameters())
    stored = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert stored[next(name for name in stored if "norm" in name or "ln_" in name)] == torch.float32
