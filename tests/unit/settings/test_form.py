"""The pipeline's parameters, which Kubeflow's UI shows as a form."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
from google.protobuf import json_format

from spin_components.errors import ConfigError
from spin_components.settings.form import FIELDS, PREFIX, form_defaults, form_values, own_place, settings_from_form
from spin_components.settings.settings import Settings
from spin_pipeline.config import load_settings
from spin_pipeline.dag import build

ORDER = [
    *("base_model", "beta", "data_train", "data_validation", "epochs", "global_batch_size", "gpu_type"),
    *(
        "gpus_generate",
        "gpus_train",
        "learning_rate",
        "max_iterations",
        "max_new_tokens",
        "max_time",
        "run_uri",
        "seed",
    ),
    *(f"settings_{section}" for section in sorted(Settings.model_fields)),
]


def sections(*overrides: str) -> dict[str, Any]:
    return load_settings("tiny", overrides).model_dump(mode="json", include=set(Settings.model_fields))


def test_the_form_has_what_people_change_first_and_a_field_a_section_after_it() -> None:
    settings = load_settings("tiny")
    ir = json_format.MessageToDict(build(settings, settings.cluster).pipeline_spec)
    fields = ir["root"]["inputDefinitions"]["parameters"]
    assert sorted(fields) == ORDER  # the UI sorts by name
    assert sorted({field["parameterType"] for field in fields.values()}) == ["NUMBER_INTEGER", "STRING"]
    assert all(field["description"] for field in fields.values())
    assert fields["learning_rate"]["defaultValue"] == "0.001"
    assert fields["settings_training"]["defaultValue"] == "{}"
    assert fields["run_uri"]["defaultValue"] == "runs/tiny/{id}"


def test_prepare_takes_every_field_of_the_form() -> None:
    from spin_components.prepare.component import prepare

    parameters = inspect.signature(prepare.python_func).parameters
    assert set(ORDER) < set(parameters)
    assert set(parameters) - set(ORDER) == {"attempt", "created", "compiled", "dataset"}


def test_values_of_the_form_give_the_same_settings() -> None:
    settings = load_settings(
        "tiny", ["training.warmup=1", "spin.ref_policy_kl_penalty=[0.1, 5.0]"], run_uri="somewhere"
    )
    values = form_values(settings)
    assert sorted(values) == ORDER
    other = sections("training.weight_decay=0.5")  # a value that is given wins over what was compiled
    parsed = Settings.model_validate(settings_from_form(values, other))
    assert parsed.model_dump() == settings.model_dump(exclude={"cluster"})


def test_defaults_of_the_form_give_the_compiled_settings_in_a_place_of_their_own() -> None:
    settings = load_settings("tiny")
    found = settings_from_form(form_defaults(settings), sections())
    assert found.pop("run") == {**sections()["run"], "uri": "runs/tiny/{id}"}
    assert found == {name: table for name, table in sections().items() if name != "run"}


def test_given_keys_win_over_defaults_and_fields() -> None:
    given = {
        "learning_rate": "0.25",
        "beta": "[0.1, 0.2]",
        f"{PREFIX}training": '{"weight_decay": 0.5, "lr": 0.125}',
        f"{PREFIX}placement": '{"train": {"memory": "64Gi"}, "node_selector": {"a": "b"}}',
    }
    found = settings_from_form(given, sections("placement.train.cpu=7"))
    assert (found["training"]["lr"], found["training"]["weight_decay"]) == (0.125, 0.5)
    assert found["training"]["global_batch_size"] == 8  # as compiled
    assert found["spin"]["ref_policy_kl_penalty"] == [0.1, 0.2]
    assert found["placement"]["train"] == {"cpu": "7", "memory": "64Gi"}
    assert found["placement"]["node_selector"] == {"a": "b"}


def test_every_field_that_is_no_json_is_named() -> None:
    given = {"beta": "much", f"{PREFIX}training": "{lr: 1}", f"{PREFIX}data": "[1]"}
    with pytest.raises(ConfigError, match="3 mistakes in the pipeline's parameters") as refused:
        settings_from_form(given, sections())
    message = str(refused.value)
    assert "beta = 'much': expected a number, or a list" in message
    assert "settings_training is no JSON" in message
    assert "settings_data = '[1]': expected a table of settings" in message


def test_fields_are_settings_with_a_kind_that_kfp_can_show() -> None:
    dumped = sections()
    for name, field in FIELDS.items():
        value = dumped[field.section][field.key]
        shown = json.dumps(value) if field.kind is list else value
        assert isinstance(shown, str if field.kind is list else field.kind), name


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("s3://b/runs/", "s3://b/runs/{id}"),
        ("s3://b/{time}", "s3://b/{time}"),
        ("s3://b/{id}/x", "s3://b/{id}/x"),
        ("", ""),
    ],
)
def test_each_run_has_a_place_of_its_own_below_the_configured_folder(uri: str, place: str) -> None:
    assert own_place(uri) == place
