from __future__ import annotations

import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from spin_components.settings.attempt import HardwareSettings, PlacementSettings
from spin_components.settings.generation import GenerationSettings
from spin_components.settings.inheritance import FIRST
from spin_components.settings.objective import ObjectiveSettings
from spin_components.settings.run import (
    DataSettings,
    ModelSettings,
    RunSettings,
    SpinSettings,
    ValidationSettings,
    parse_duration,
)
from spin_components.settings.section import Section
from spin_components.settings.selection import SelectionSettings
from spin_components.settings.settings import Settings
from spin_components.settings.training import TrainingSettings


def settings(**sections: dict[str, Any]) -> Settings:
    return Settings.model_validate({"model": {"base": "m"}, "data": {"train": "d"}, **sections})


def through_protobuf(values: Settings) -> Settings:
    """Serialize and parse, with every JSON number a float, as in the protobuf Struct of a pipeline's parameters."""
    text = json.dumps(values.model_dump(mode="json"))
    return Settings.model_validate(json.loads(text, parse_int=float))


def test_defaults_are_valid_and_equal_nemos() -> None:
    parsed = settings()
    assert (parsed.spin.ref_policy_kl_penalty, parsed.training.global_batch_size) == (0.2, 64)
    assert (parsed.generation.temperature, parsed.generation.top_p, parsed.generation.top_k) == (1.0, 1.0, 0)
    assert (parsed.training.optimizer, parsed.selection.save_top_k, parsed.spin.max_steps) == ("adamw", 3, -1)


def test_only_the_model_and_the_data_have_no_default() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"model": {}, "data": {}})
    assert [error["loc"] for error in caught.value.errors()] == [("model", "base"), ("data", "train")]


OUT_OF_RANGE: list[tuple[type[Section], str, list[Any]]] = [
    (RunSettings, "name", ["", "Upper", "-x", "x-", "a_b", "x" * 64]),
    (RunSettings, "seed", [-1, 2**31, 0.5]),
    (RunSettings, "max_time", ["an hour", "1:00", "00:01:00", "-5", "1e3"]),
    (ModelSettings, "base", [""]),
    (ModelSettings, "sha256", ["0" * 63, "0" * 65, "A" * 64, "g" * 64]),
    (DataSettings, "train", [""]),
    (DataSettings, "validation_size", [-1, -0.1, 1.5, "1.5", "x", "nan", "inf", "-3", None]),
    (DataSettings, "max_length", [7]),
    (DataSettings, "max_prompt_length", [3]),
    (DataSettings, "chat_template_kwargs", [{"messages": []}, {"a": float("nan")}, "text"]),
    (DataSettings, "chat_template_date", ["yesterday", "2026-13-01"]),
    (DataSettings, "shard_tokens", [0]),
    (DataSettings, "max_train_records", [-1]),
    (DataSettings, "max_validation_records", [-1]),
    (DataSettings, "on_bad_record", ["ignore"]),
    (DataSettings, "shard_by", ["", "bytes", True]),
    (DataSettings, "split", ["", "random", True]),
    (DataSettings, "long_prompts", ["cut", ""]),
    (SpinSettings, "history", [-1, 33, 0.5, None]),
    (SpinSettings, "history_ratio", [0, -0.5, "some", "", True, None, math.inf, math.nan]),
    (SpinSettings, "max_similarity", [0.0, -1.0, 1.01, math.nan]),
    (SpinSettings, "max_length_ratio", [-1.0, 0.5, math.inf, math.nan]),
    (GenerationSettings, "on_truncated", ["fail", "", None]),
    (SpinSettings, "max_iterations", [0, 33, 1.5]),
    (SpinSettings, "max_epochs", [0, 33, 1.5, [1, 0, 1], [1, 1, 1.5]]),
    (SpinSettings, "max_steps", [-2]),
    (SpinSettings, "ref_policy_kl_penalty", [0, -0.1, math.nan, math.inf, "x", [0.1, 0.1, 0.0]]),
    (GenerationSettings, "engine", ["trt"]),
    (ObjectiveSettings, "loss", ["exponential", ""]),
    (TrainingSettings, "lr_schedule_span", ["epoch", ""]),
    (ObjectiveSettings, "label_smoothing", [-0.1, 0.5]),
    (ObjectiveSettings, "sft_weight", [-0.1, math.inf, math.nan]),
    (ObjectiveSettings, "base_weight", [-0.1, 1.1]),
    (ObjectiveSettings, "alpha", [0.0, -1.0, math.inf, math.nan]),
    (ObjectiveSettings, "history_weight", [-0.1, math.inf, math.nan]),
    (ObjectiveSettings, "mu", [0, -1.0, math.inf, math.nan]),
    (GenerationSettings, "temperature", [-0.1, 10.1, math.nan, [1.0, -0.1]]),
    (GenerationSettings, "top_p", [0, 1.1]),
    (GenerationSettings, "top_k", [-1]),
    (GenerationSettings, "repetition_penalty", [0]),
    (GenerationSettings, "max_new_tokens", [0]),
    (GenerationSettings, "min_new_tokens", [-1]),
    (GenerationSettings, "stop", ["text, no list"]),
    (GenerationSettings, "shards", [-1, 257]),
    (GenerationSettings, "batch_size", [0]),
    (GenerationSettings, "block_size", [-1]),
    (GenerationSettings, "tensor_parallel", [0]),
    (GenerationSettings, "gpu_memory_utilization", [0, 1.1]),
    (GenerationSettings, "kv_cache_gib", [0]),
    (TrainingSettings, "backend", ["megatron"]),
    (TrainingSettings, "zero_stage", [4, -1, 1.5, "x"]),
    (TrainingSettings, "precision", ["fp16"]),
    (TrainingSettings, "global_batch_size", [0]),
    (TrainingSettings, "micro_batch_size", [0]),
    (TrainingSettings, "micro_batch_tokens", [-1]),
    (TrainingSettings, "optimizer", ["sgd"]),
    (TrainingSettings, "lr", [0, -1e-6, math.inf, [1e-6, 0.0]]),
    (TrainingSettings, "lr_schedule", ["step"]),
    (TrainingSettings, "warmup", [-1, 1.1]),
    (TrainingSettings, "min_lr", [-1e-9]),
    (TrainingSettings, "weight_decay", [-0.1]),
    (TrainingSettings, "adam_beta1", [-0.1, 1]),
    (TrainingSettings, "adam_beta2", [-0.1, 1]),
    (TrainingSettings, "rmsprop_alpha", [-0.1, 1]),
    (TrainingSettings, "eps", [0]),
    (TrainingSettings, "gradient_clip_val", [-1]),
    (TrainingSettings, "limit_train_batches", [-1, 1.1]),
    (TrainingSettings, "save_interval", [-1]),
    (TrainingSettings, "packing", ["always", True]),
    (ValidationSettings, "batch_size", [0]),
    (ValidationSettings, "limit_val_batches", [-1, 1.1]),
    (ValidationSettings, "val_check_interval", [-1, 1.1]),
    (ValidationSettings, "num_samples", [-1]),
    (SelectionSettings, "epoch", ["first"]),
    (SelectionSettings, "save_top_k", [-2]),
    (SelectionSettings, "patience", [-1]),
    (SelectionSettings, "min_delta", [-0.1]),
    (SelectionSettings, "confidence", [0.4, 1]),
    (SelectionSettings, "on_regression", ["ignore"]),
    (SelectionSettings, "on_drift", ["ignore"]),
    (SelectionSettings, "measure", ["bleu", ""]),
    (SelectionSettings, "max_repetition", [-0.1, 1.1]),
    (SelectionSettings, "max_length_ratio", [-1, 0.5, 1]),
    (HardwareSettings, "device", ["tpu"]),
    (HardwareSettings, "ranks", [0]),
    (HardwareSettings, "nodes", [0]),
    (HardwareSettings, "threads", [-1]),
    (HardwareSettings, "collective_timeout", [0.5, 604801, math.inf, math.nan]),
    (HardwareSettings, "save_timeout", [-1, math.inf, math.nan]),
    (HardwareSettings, "gpu_memory_gib", [-1, math.nan, math.inf]),
    (HardwareSettings, "memory_check", ["maybe", True]),
    (HardwareSettings, "shard_scoring", ["maybe", True]),
    (HardwareSettings, "sampler_tolerance", [-0.1, math.inf, math.nan]),
    (PlacementSettings, "accelerator", ["gpu", "nvidia.com/", "nvidia.com/gpu: 1"]),
    (PlacementSettings, "generate", [{"cpu": "0"}, {"cpu": "4 cores"}, {"memory": "0Gi"}, {"memory": "16 GB"}]),
    (PlacementSettings, "train", [{"cpu": "-1"}, {"memory": ""}]),
    (PlacementSettings, "score", [{"gpus": 1}]),
    (PlacementSettings, "node_selector", [["a"], {"a": ["b"]}]),
    (PlacementSettings, "tolerations", [{"key": "a"}, [{"name": "a"}]]),
    (PlacementSettings, "affinity", [{"nodeAffinity": {}}]),
    (PlacementSettings, "ephemeral_storage", ["0Gi", "a lot", "10 GB"]),
    (PlacementSettings, "devices", [["rdma/hca"], {"rdma": 1}, {"rdma/hca": 0}, {"rdma/hca": "many"}]),
]
NEEDED: dict[type[Section], dict[str, Any]] = {ModelSettings: {"base": "m"}, DataSettings: {"train": "d"}}


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [(section, name, value) for section, name, values in OUT_OF_RANGE for value in values],
    ids=lambda part: part.__name__ if isinstance(part, type) else repr(part)[:20],
)
def test_values_outside_the_limits_are_refused(section: type[Section], name: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        section.model_validate({**NEEDED.get(section, {}), name: value})
    assert {error["loc"][0] for error in caught.value.errors()} == {name}


def test_the_limits_of_every_setting_are_tested() -> None:
    free = {
        (RunSettings, "uri"),
        (ModelSettings, "trust_remote_code"),
        (ModelSettings, "forked_from"),
        (DataSettings, "validation"),
        (DataSettings, "deduplicate"),
        (DataSettings, "chat_template"),
        (SpinSettings, "reset_optimizer"),
        (ObjectiveSettings, "length_normalized"),
        (TrainingSettings, "gradient_checkpointing"),
        (TrainingSettings, "offload_optimizer"),
        (PlacementSettings, "ipc_lock"),
    }
    tried = {(section, name) for section, name, _ in OUT_OF_RANGE}
    every = {(section, name) for section, _ in tried for name in section.model_fields}
    assert every - tried - free == set()


@pytest.mark.parametrize("section", [RunSettings, DataSettings, TrainingSettings, HardwareSettings])
def test_unknown_keys_are_refused(section: type[Section]) -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        section.model_validate({**NEEDED.get(section, {}), "surprise": 1})


def test_every_setting_has_a_description() -> None:
    sections = [
        annotation
        for field in Settings.model_fields.values()
        if isinstance(annotation := field.annotation, type) and issubclass(annotation, Section)
    ]
    fields = [(section, name, field) for section in sections for name, field in section.model_fields.items()]
    assert len(sections) == len(Settings.model_fields)
    assert [name for _, name, field in fields if not (field.description or "").endswith(".")] == []


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        settings().spin.max_epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"data": {"train": "d", "max_length": 64, "max_prompt_length": 64}}, "leaves no room for an answer"),
        ({"generation": {"min_new_tokens": 9, "max_new_tokens": 8}}, r"min_new_tokens \(9\) exceeds max_new_tokens"),
        ({"training": {"global_batch_size": 6, "micro_batch_size": 4}}, r"global_batch_size \(6\) must be a multiple"),
        ({"training": {"global_batch_size": 6, "micro_batch_size": 2}, "hardware": {"ranks": 2}}, r"\(2 x 2 x 1\)"),
        ({"training": {"global_batch_size": 8}, "hardware": {"ranks": 2, "nodes": 3}}, r"\(1 x 2 x 3\)"),
        ({"training": {"backend": "torch"}, "hardware": {"ranks": 2}}, r"hardware.nodes = 2; use .deepspeed."),
        ({"spin": {"max_iterations": 3, "ref_policy_kl_penalty": [0.1, 0.2]}}, "has 2 entries for 3 iterations"),
        ({"training": {"lr": [1e-6]}, "spin": {"max_iterations": 2}}, "training.lr has 1 entries for 2 iterations"),
        ({"spin": {"max_iterations": 3, "max_epochs": [2, 1]}}, "max_epochs has 2 entries for 3 iterations"),
        ({"generation": {"temperature": [1.0, 0.9]}}, "generation.temperature has 2 entries for 3 iterations"),
        (
            {"objective": {"loss": "hinge", "label_smoothing": 0.1}},
            "label_smoothing = 0.1 is defined for loss = 'logistic' only, not for 'hinge'",
        ),
        ({"objective": {"loss": "nce", "label_smoothing": 0.1}}, "loss = 'logistic' only, not for 'nce'"),
        ({"objective": {"loss": "sft", "sft_weight": 0.1}}, "sft_weight = 0.1 has no effect with loss = 'sft'"),
        ({"objective": {"loss": "sft", "length_normalized": True}}, "length_normalized = True has no effect"),
        ({"objective": {"mu": 2}}, "mu = 2.0 is defined for loss = 'nce' only, not for 'logistic'"),
        ({"objective": {"loss": "nce", "base_weight": 0.5}}, "base_weight = 0.5 is not defined for loss = 'nce'"),
        (
            {"objective": {"loss": "triplet", "base_weight": 0.5}},
            "not defined for loss = 'triplet', whose reward has no",
        ),
        ({"objective": {"loss": "triplet", "label_smoothing": 0.1}}, "loss = 'logistic' only, not for 'triplet'"),
        ({"objective": {"loss": "triplet", "mu": 2}}, "mu = 2.0 is defined for loss = 'nce' only, not for 'triplet'"),
        ({"objective": {"alpha": 0.5}}, "alpha = 0.5 is defined for loss = 'triplet' only, not for 'logistic'; set it"),
        ({"objective": {"loss": "nce", "history_weight": 0}}, "history_weight = 0.0 .* 'nce'; set it to 0.1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(sections: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        settings(**sections)


def test_one_number_applies_to_every_iteration() -> None:
    parsed = settings(spin={"ref_policy_kl_penalty": 0.1, "max_epochs": 2}, training={"lr": 1e-6})
    assert [parsed.spin.epochs(t) for t in range(3)] == [2] * 3
    assert [parsed.generation.at(t) for t in range(3)] == [parsed.generation] * 3
    assert [parsed.spin.beta(t) for t in range(3)] == [0.1] * 3
    assert [parsed.training.peak_lr(t) for t in range(3)] == [1e-6] * 3


def test_a_list_has_one_number_per_iteration() -> None:
    # the paper's schedule
    parsed = settings(
        spin={"max_iterations": 4, "ref_policy_kl_penalty": [0.1, 0.1, 0.1, 5.0], "max_epochs": [2, 2, 1, 1]},
        training={"lr": [5e-7, 5e-7, 1e-7, 1e-7]},
        generation={"temperature": [1.0, 1.0, 0.9, 0.0]},
    )
    assert [parsed.spin.epochs(t) for t in range(4)] == [2, 2, 1, 1]
    assert [parsed.generation.at(t).temperature for t in range(4)] == [1.0, 1.0, 0.9, 0.0]
    assert [parsed.spin.beta(t) for t in range(4)] == [0.1, 0.1, 0.1, 5.0]
    assert [parsed.training.peak_lr(t) for t in range(4)] == [5e-7, 5e-7, 1e-7, 1e-7]


def test_a_list_may_be_longer_than_the_run() -> None:
    assert settings(spin={"max_iterations": 1, "ref_policy_kl_penalty": [0.1, 5.0]}).spin.beta(0) == 0.1


def test_nemos_generation_tables_are_accepted() -> None:
    parsed = GenerationSettings.model_validate(
        {
            "sampling_params": {
                "use_greedy": False,
                "temperature": 0.7,
                "top_k": 50,
                "top_p": 0.9,
                "repetition_penalty": 1.2,
                "add_BOS": False,
                "all_probs": False,
                "compute_logprob": False,
                "end_strings": ["<|endoftext|>", "<extra_id_1>"],
            },
            "length_params": {"max_length": 128, "min_length": 1},
        }
    )
    assert parsed == GenerationSettings(
        temperature=0.7,
        top_k=50,
        top_p=0.9,
        repetition_penalty=1.2,
        stop=["<|endoftext|>", "<extra_id_1>"],
        max_new_tokens=128,
        min_new_tokens=1,
    )


def test_nemos_greedy_is_temperature_0() -> None:
    parsed = GenerationSettings.model_validate({"sampling_params": {"use_greedy": True, "temperature": 0.7}})
    assert parsed.temperature == 0.0


def test_our_name_takes_precedence_over_nemos() -> None:
    parsed = GenerationSettings.model_validate({"max_new_tokens": 5, "length_params": {"max_length": 7}})
    assert parsed.max_new_tokens == 5


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"sampling_params": {"add_BOS": True}}, "add_BOS = True is not supported"),
        ({"sampling_params": {"temprature": 1.0}}, "temprature"),
        ({"length_params": 5}, "must be tables"),
        ({"sampling_params": ["top_k"]}, "must be tables"),
        ({"length_params": {"max_length": 0}}, "max_new_tokens"),
    ],
)
def test_unsupported_values_in_nemos_tables_are_refused(tables: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        GenerationSettings.model_validate(tables)


COUNTS_OR_FRACTIONS = [
    ("data", "validation_size"),
    ("training", "warmup"),
    ("training", "limit_train_batches"),
    ("validation", "limit_val_batches"),
    ("validation", "val_check_interval"),
]


@pytest.mark.parametrize(("section", "name"), COUNTS_OR_FRACTIONS)
@pytest.mark.parametrize("value", [1, 1.0, 500, 0.05, 1 / 3, 1e-7])
def test_a_count_stays_a_count_and_a_fraction_a_fraction(section: str, name: str, value: float) -> None:
    before = settings(**{section: {"train": "d", name: value} if section == "data" else {name: value}})
    as_json = Settings.model_validate(before.model_dump(mode="json"))
    as_text = Settings.model_validate_json(before.model_dump_json())
    for after in (before, as_json, as_text, through_protobuf(before)):
        value_after = getattr(getattr(after, section), name)
        assert (value_after, type(value_after)) == (value, type(value))


@pytest.mark.parametrize("value", [0, 0.0])
def test_the_type_of_a_zero_warmup_is_kept(value: float) -> None:
    warmup = through_protobuf(settings(training={"warmup": value})).training.warmup
    assert (warmup, type(warmup)) == (value, type(value))


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("1.0", 1.0), ("0.5", 0.5), ("1e-1", 0.1)])
def test_a_count_or_fraction_may_be_text(text: str, value: float) -> None:
    warmup = TrainingSettings.model_validate({"warmup": text}).warmup
    assert (warmup, type(warmup)) == (value, type(value))


def test_limits_on_sampled_answers_need_sampled_answers() -> None:
    limits = {"max_repetition": 0.3, "max_length_ratio": 3.0}
    settings(selection=limits)
    message = r"max_repetition and selection\.max_length_ratio limit sampled answers, .* validation\.num_samples is 0"
    with pytest.raises(ValueError, match=message):
        settings(selection=limits, validation={"num_samples": 0})
    settings(validation={"num_samples": 0})  # the default limit applies to answers where there are any
    with pytest.raises(ValueError, match=r"selection.measure = 'chrf' .* at least 8 .* validation.num_samples is 7"):
        settings(selection={"measure": "chrf"}, validation={"num_samples": 7})


def test_t_spin_has_three_answers_from_iteration_1_on() -> None:
    triplet = ObjectiveSettings(loss="triplet")
    assert [triplet.answers(t) for t in (0, 1, 2)] == [2, 3, 3]
    assert (triplet.alpha, triplet.history_weight) == (1.0, 0.1)
    assert ObjectiveSettings(loss="triplet", history_weight=0.0).answers(1) == ObjectiveSettings().answers(1) == 2


def test_a_policy_depends_on_the_settings_of_its_own_loss_alone() -> None:
    names = {loss: set(ObjectiveSettings(loss=loss).training_inputs()) for loss in ("logistic", "nce", "triplet")}
    assert names["nce"] - names["logistic"] == {"objective.mu"}
    assert names["triplet"] - names["logistic"] == {"objective.alpha", "objective.history_weight"}
    assert names["logistic"] < names["nce"]


def test_settings_are_unchanged_when_numbers_become_floats() -> None:
    before = settings(
        run={"seed": 7, "max_time": "00:03:50:00"},
        spin={"max_iterations": 2, "ref_policy_kl_penalty": [1, 5.0], "max_epochs": [2, 1], "reset_optimizer": False},
        objective={"loss": "hinge", "sft_weight": 1, "base_weight": 1},
        generation={"temperature": [1, 0], "top_k": 50, "stop": ["###"], "shards": 4},
        training={"zero_stage": 3, "lr": 1e-6, "save_interval": 10, "gradient_checkpointing": True},
        selection={"save_top_k": -1, "patience": 2},
        hardware={"ranks": 2, "threads": 1},
    )
    after = through_protobuf(before)
    assert after == before
    assert repr(after) == repr(before)  # 1 == 1.0, but their representations differ


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", math.inf),
        ("0", 0.0),
        ("90", 90.0),
        ("1.5", 1.5),
        ("00:03:50:00", 3 * 3600 + 50 * 60),
        ("2:01:00:30", 2 * 86400 + 3600 + 30),
        ("00:00:00:00.5", 0.5),
    ],
)
def test_durations_by_hand(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert RunSettings(max_time=text).max_time_s == seconds


def test_a_duration_may_be_a_number() -> None:
    assert RunSettings.model_validate({"max_time": 90}).max_time_s == 90.0


@pytest.mark.parametrize("text", ["1:00", "00:01:00", "1:2:3:4:5", "x", "-1", "1.2.3", " ", ":::", "1h"])
def test_malformed_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration; write seconds, or days:hours:minutes:seconds"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("training", "hardware", "expected"),
    [
        ({}, {}, "set training.backend = 'deepspeed'"),
        ({"backend": "torch"}, {}, "set training.backend = 'deepspeed'"),
        ({"zero_stage": 0}, {"ranks": 2}, "needs training.zero_stage = 1, 2 or 3; found 0"),
    ],
)
def test_an_offload_without_deepspeed_or_zero_is_refused(
    training: dict[str, Any], hardware: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValidationError, match=expected):
        settings(training={**training, "offload_optimizer": True}, hardware=hardware)


@pytest.mark.parametrize("stage", [0, 1, 2, 3, "auto"])
def test_zero_stages_are_integers_or_auto(stage: int | str) -> None:
    assert through_protobuf(settings(training={"zero_stage": stage})).training.zero_stage == stage


def test_every_generation_setting_is_one_that_finished_steps_have_recorded() -> None:
    # all of them are inputs of generate and validate: with one more, no run that has generated could be resumed, unless
    # it is left out at the value that such runs have
    recorded = {
        *("engine", "temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "min_new_tokens", "stop"),
        *("shards", "on_truncated", "batch_size", "tensor_parallel", "gpu_memory_utilization", "kv_cache_gib"),
    }
    assert GenerationSettings.model_fields.keys() == recorded | {"block_size"}
    as_begun = GenerationSettings.model_validate(FIRST["generation"])
    assert as_begun.inputs().keys() == {f"generation.{name}" for name in recorded}
