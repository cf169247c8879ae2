from __future__ import annotations

from typing import Any

import pytest

from spin_components.errors import ConfigError
from spin_components.settings.mistakes import parse_settings


def mistakes(**sections: Any) -> list[str]:
    """The lines of the error, the first with the count and the source."""
    with pytest.raises(ConfigError) as caught:
        parse_settings({"model": {"base": "m"}, "data": {"train": "d"}, **sections}, source="run.toml")
    return str(caught.value).splitlines()


def test_valid_settings_are_returned() -> None:
    parsed = parse_settings({"model": {"base": "m"}, "data": {"train": "d"}}, source="run.toml")
    assert (parsed.model.base, parsed.data.train) == ("m", "d")


def test_all_mistakes_are_reported_at_once() -> None:
    lines = mistakes(
        data={"max_length": 4},
        spin={"max_iteration": 3, "max_epochs": 0},
        training={"optimizer": "sgd"},
        selektion={},
    )
    assert lines[0] == "6 mistakes in run.toml:"
    assert lines[1:] == [
        "  data.max_length = 4: input should be greater than or equal to 8",
        "  data.train: missing; it is required and has no default",
        "  selektion: unknown key; did you mean 'selection'?",
        "  spin.max_epochs = 0: input should be greater than or equal to 1",
        "  spin.max_iteration: unknown key; did you mean 'max_iterations'?",
        "  training.optimizer = 'sgd': input should be 'adamw' or 'rmsprop'",
    ]


def test_one_mistake_is_counted_as_one() -> None:
    assert mistakes(spin={"max_epochs": 33}) == [
        "1 mistake in run.toml:",
        "  spin.max_epochs = 33: input should be less than or equal to 32",
    ]


def test_an_unknown_key_without_a_similar_one_gets_the_list_of_keys() -> None:
    (_, line) = mistakes(hardware={"qqq": 1})
    assert line == (
        "  hardware.qqq: unknown key; expected one of device, ranks, nodes, threads, collective_timeout, "
        "save_timeout, gpu_memory_gib, memory_check, shard_scoring, sampler_tolerance"
    )


def test_missing_sections_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings({}, source="run.toml")
    assert str(caught.value).splitlines() == [
        "2 mistakes in run.toml:",
        "  data: missing; it is required and has no default",
        "  model: missing; it is required and has no default",
    ]


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"spin": {"max_epochs": "many"}}, "spin.max_epochs = 'many': input should be a valid integer"),
        ({"run": {"max_time": "1:00"}}, "run.max_time = '1:00': '1:00' is not a duration; write seconds"),
        ({"spin": {"max_epochs": [2, 0, 1]}}, "spin.max_epochs = 0: input should be greater than or equal to 1"),
        (
            {"generation": {"temperature": [1, 11, 1]}},
            "generation.temperature = 11: input should be less than",
        ),
        ({"spin": {"max_epochs": None}}, "spin.max_epochs = None: input should be a valid integer"),
        (
            {"objective": {"loss": "hing"}},
            "objective.loss = 'hing': input should be 'logistic', 'hinge'",
        ),
        ({"objective": {"sft": 1}}, "objective.sft: unknown key"),
        ({"training": {"warmup": 1.5}}, "training.warmup = 1.5: a float is a fraction, from 0.0 to 1.0"),
        ({"training": {"warmup": -1}}, "training.warmup = -1: a count is 0 or more"),
        ({"training": {"global_batch_size": 6, "micro_batch_size": 4}}, "training: global_batch_size (6) must be"),
        ({"spin": {"ref_policy_kl_penalty": [0.1]}}, "spin: ref_policy_kl_penalty has 1 entries for 3 iterations"),
        ({"training": {"lr": [1e-6]}}, "configuration: training.lr has 1 entries for 3 iterations"),
        ({"generation": {"sampling_params": {"all_probs": True}}}, "generation: sampling_params.all_probs = True"),
        ({"generation": {"length_params": {"max_lenght": 5}}}, "generation.max_lenght: unknown key; expected one of"),
        ({"spin": 3}, "spin = 3: input should be a valid dictionary"),
    ],
)
def test_a_mistake_names_the_key_the_value_and_what_is_allowed(sections: dict[str, Any], line: str) -> None:
    (count, first) = mistakes(**sections)
    assert count == "1 mistake in run.toml:"
    assert first.startswith(f"  {line}")


@pytest.mark.parametrize(
    ("sections", "name"),
    [
        ({"spin": {"ref_policy_kl_penalty": -0.1}}, "spin.ref_policy_kl_penalty"),
        ({"training": {"lr": "fast"}}, "training.lr"),
        ({"training": {"lr": [1e-6, 0.0, 1e-6]}}, "training.lr"),
        ({"training": {"warmup": "some"}}, "training.warmup"),
        ({"generation": {"stop": "###"}}, "generation.stop"),
    ],
)
def test_a_mistake_in_a_setting_of_two_types_names_the_setting_only(sections: dict[str, Any], name: str) -> None:
    lines = mistakes(**sections)[1:]
    assert lines
    assert all(line.startswith(f"  {name} = ") for line in lines)
