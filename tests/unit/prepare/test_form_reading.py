"""What prepare makes of the pipeline's parameters before any work."""

from __future__ import annotations

import json
from typing import Any

import pytest

from spin_components.errors import ConfigError
from spin_components.prepare.compiled_shape import check_iterations
from spin_components.prepare.form import read_form
from spin_components.settings.form import form_values
from spin_components.settings.mistakes import parse_settings
from spin_components.settings.settings import Settings
from spin_components.store.lease import RUNNER
from spin_pipeline.config import load_settings

CREATED = "2026-11-30T12:17:52Z"


@pytest.fixture(autouse=True)
def on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RUNNER, raising=False)


def read(**fields: Any) -> tuple[str, dict[str, Any]]:
    settings = load_settings("tiny", run_uri="s3://bucket/runs/a")
    defaults = json.dumps(settings.model_dump(mode="json", include=set(Settings.model_fields)))
    return read_form({**form_values(settings), **fields}, {"defaults": defaults}, "5e5f-id", CREATED)


def test_placeholders_of_the_address_are_filled_in() -> None:
    uri, settings = read(run_uri="s3://bucket/{time}/{id}")
    assert uri == settings["run"]["uri"] == "s3://bucket/20261130T121752Z/5e5f-id"
    assert read(run_uri="s3://bucket/runs/b")[0] == "s3://bucket/runs/b"


def test_an_address_that_pods_do_not_share_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"run_uri = 'runs/5e5f-id' is a path relative to each pod's own folder"):
        read(run_uri="runs/{id}")
    assert read(run_uri="/mnt/runs/{id}")[0] == "/mnt/runs/5e5f-id"


def test_an_address_on_one_machine_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUNNER, "1")
    assert read(run_uri="runs/{id}")[0] == "runs/{id}"


def test_a_misspelt_key_of_a_section_is_refused_by_name() -> None:
    _, settings = read(settings_training='{"weight_decai": 0.1}', settings_spin='{"max_iteration": 2}')
    with pytest.raises(ConfigError) as refused:
        parse_settings(settings, source="the pipeline's parameters")
    assert "training.weight_decai: unknown key; did you mean 'weight_decay'?" in str(refused.value)
    assert "spin.max_iteration: unknown key; did you mean 'max_iterations'?" in str(refused.value)


def test_more_iterations_than_compiled_are_refused_before_lists_are_checked() -> None:
    _, settings = read(max_iterations=5, beta="[0.1, 0.2]")
    with pytest.raises(ConfigError, match=r"spin\.max_iterations = 5, but this pipeline was compiled for at most 2"):
        check_iterations(settings, {"max_iterations": 2.0})
