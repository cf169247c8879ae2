from __future__ import annotations

from typing import Any

import pytest

from spin_components.errors import ConfigError
from spin_components.settings.mistakes import parse_settings
from spin_components.settings.packages import check_packages
from spin_components.settings.settings import Settings
from spin_components.settings.training import LoraSettings


def settings_with(**sections: dict[str, Any]) -> Settings:
    return parse_settings({"model": {"base": "m"}, "data": {"train": "d"}, **sections}, source="the test")


def test_all_weights_are_trained_unless_a_rank_is_given() -> None:
    lora = settings_with().lora
    assert not lora.is_on
    assert lora.training_inputs() == {}
    assert lora.scoring_inputs() == {}


def test_inputs_of_a_step_include_every_setting_of_the_adapter() -> None:
    lora = LoraSettings(r=4, quantize="nf4", export="adapter", target_modules=["q_proj"])
    assert lora.training_inputs() == {
        "lora.r": 4,
        "lora.alpha": 16.0,
        "lora.dropout": 0.0,
        "lora.target_modules": ["q_proj"],
        "lora.quantize": "nf4",
        "lora.export": "adapter",
    }
    assert lora.scoring_inputs() == {"lora.quantize": "nf4"}
    assert LoraSettings(r=4).scoring_inputs() == {}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"r": 4, "dropout": 0.1}, r"lora\.dropout = 0\.1 is not supported: .* before the first step"),
        ({"quantize": "nf4", "export": "adapter"}, r"lora\.r = 0 trains none; set lora\.r"),
        ({"export": "adapter"}, r"lora\.r = 0 trains none"),
        ({"r": 4, "quantize": "nf4"}, r"quantize each merged policy again .* set lora\.export = 'adapter'"),
        ({"r": 4, "target_modules": []}, r"lora\.target_modules"),
        ({"r": -1}, r"lora\.r"),
    ],
)
def test_settings_that_cannot_be_trained_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_with(lora=table)


@pytest.mark.parametrize(("backend", "ranks"), [("deepspeed", 1), ("auto", 2)])
def test_four_bit_weights_are_not_partitioned_among_ranks(backend: str, ranks: int) -> None:
    lora = {"r": 4, "quantize": "nf4", "export": "adapter"}
    with pytest.raises(ConfigError, match=r"zero_stage = 3, .* cannot be partitioned; use 0, 1 or 2"):
        settings_with(lora=lora, training={"backend": backend, "zero_stage": 3}, hardware={"ranks": ranks})
    settings_with(lora=lora, training={"backend": backend, "zero_stage": 2}, hardware={"ranks": ranks})


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_packages(LoraSettings())
    with pytest.raises(ConfigError, match=r"lora\.r is set, but the package peft is not installed .* extra `lora`"):
        check_packages(LoraSettings(r=2))
