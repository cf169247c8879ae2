"""Ranks that divide a model's weights compute the log-probabilities of one process, bit by bit, and hold less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.packing import Prompted
from spin_components.model.compute import resolve_compute
from spin_components.model.frozen import WholeLoader
from spin_components.model.scoring import load_scored
from spin_components.runtime.ranks import launch
from spin_components.settings.settings import Settings
from support import bounds
from support.families import CONFIGS, OTHERS, save_family
from support.sharded_ranks import ShardedJob

FAMILIES = [*CONFIGS, *OTHERS]
GROUPS: list[tuple[list[int], list[list[int]]]] = [
    ([5, 6, 7, 8, 9], [[10, 11, 12, 2], [13, 14]]),
    ([20, 21], [[22, 23, 24, 25, 26, 2], [27]]),
    ([40, 41, 42], [[43, 44, 2], [45, 46, 47, 48]]),
]
WORK = {2: [GROUPS, []], 3: [GROUPS[:1], GROUPS[1:], []]}
"""Passes of each of two and of three ranks: some have more than others, and the last has none."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each family, and a tied one whose file holds its output layer instead of its embedding."""
    root = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        save_family(family, root / family)
    return {family: root / family for family in FAMILIES}


@pytest.fixture
def ranks_module(warm_python: None, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    paths = [str(Path(__file__).parents[1]), *filter(None, [__import__("os").environ.get("PYTHONPATH", "")])]
    monkeypatch.setenv("PYTHONPATH", ":".join(paths))
    return "support.sharded_ranks"


def settings_of(precision: str) -> Settings:
    tables: dict[str, Any] = {
        "model": {"base": "-"},
        "data": {"train": "-"},
        "training": {"precision": precision},
        "hardware": {"device": "cpu"},
    }
    return Settings.model_validate(tables)


def computed(model: Any, settings: Settings) -> list[list[float]]:
    """Log-probabilities of the groups, a pass each, as the ranks compute them."""
    compute = resolve_compute(settings.hardware, settings.training.precision)
    bounds.few_threads()
    with torch.inference_mode(), compute.autocast():
        return [answer_logprobs(model, [Prompted(prompt, answers)]).tolist() for prompt, answers in GROUPS]


@pytest.mark.parametrize(("ranks", "precision"), [(2, "float32"), (3, "bf16")])
def test_ranks_that_divide_the_weights_compute_the_bits_of_one_process(
    folders: dict[str, Path], ranks_module: str, ranks: int, precision: str
) -> None:
    settings = settings_of(precision)
    job = ShardedJob(folders=folders, groups=WORK[ranks], settings=settings)
    outcomes = launch(ranks_module, job, ranks, where="the test")
    compute = resolve_compute(settings.hardware, precision)
    for family, folder in folders.items():
        model = load_scored(folder, settings, compute, WholeLoader(compute)).eval()
        found = [row for outcome in outcomes for row in outcome[family]["logprobs"]]
        assert found == computed(model, settings), family
        whole = sum(each.numel() * each.element_size() for each in model.parameters())
        vectors = sum(each.numel() * each.element_size() for each in model.parameters() if each.ndim < 2)
        for outcome in outcomes:
            sizes = outcome[family]
            # parts are filled up to one size: less than a number more for each parameter
            most = vectors + (whole - vectors) / ranks + 4 * len(list(model.parameters()))
            assert sizes["held"] <= most, family


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
