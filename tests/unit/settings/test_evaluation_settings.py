from __future__ import annotations

from typing import Any

import pytest

from spin_components.errors import ConfigError
from spin_components.settings.attempt import EvaluationSettings
from spin_components.settings.mistakes import parse_settings
from spin_components.settings.packages import check_packages
from spin_components.settings.settings import Settings
from spin_pipeline.config import load_settings


def settings_with(**sections: dict[str, Any]) -> Settings:
    return parse_settings({"model": {"base": "m"}, "data": {"train": "d"}, **sections}, source="the test")


JUDGE = {"judge_url": "http://judge:8000/v1", "judge_model": "j"}


def test_evaluation_is_off_by_default() -> None:
    assert not settings_with().evaluation.is_on
    assert settings_with(evaluation={"tasks": ["arc_easy"]}).evaluation.is_on
    assert settings_with(evaluation=JUDGE).evaluation.is_on


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"task_files": "s3://b/tasks"}, r"task_files is set, but evaluation\.tasks is empty"),
        ({"tasks": ["a", "b", "a"]}, r"names a task twice: a, b, a"),
        ({"tasks": ["../a.yaml"]}, r"evaluation\.tasks"),
        ({"tasks": ["mmlu_*"]}, r"evaluation\.tasks"),
        ({"judge_url": "http://judge/v1"}, r"judge_url and evaluation\.judge_model must both be set"),
        ({"judge_model": "j"}, r"judge_url and evaluation\.judge_model must both be set"),
        ({**JUDGE, "judge_url": "judge:8000"}, r"write http://host:port/v1"),
        ({**JUDGE, "judge_url": "https://me:secret@judge/v1"}, r"set SPIN_JUDGE_API_KEY instead"),
        ({**JUDGE, "judge_url": "https://judge/v1?key=secret"}, r"set SPIN_JUDGE_API_KEY instead"),
        ({**JUDGE, "judge_template": "Rate {answer}."}, r"the placeholder \{prompt\} is missing"),
        ({**JUDGE, "judge_num_samples": 65}, r"judge_num_samples = 65 exceeds validation\.num_samples = 64"),
        ({"limit": 0}, r"0 selects nothing"),
        ({"limit": 1.5}, r"a float is a fraction"),
        ({"num_fewshot": -2}, r"num_fewshot"),
        ({"api_key": "secret"}, r"evaluation\.api_key"),
    ],
)
def test_invalid_settings_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_with(evaluation=table)


def test_a_judge_needs_sampled_answers() -> None:
    with pytest.raises(ConfigError, match=r"validation\.num_samples is 0; set it, e\.g\. to 32"):
        settings_with(evaluation=JUDGE, validation={"num_samples": 0})


def test_settings_can_be_overridden_on_the_command_line() -> None:
    overrides = ['evaluation.tasks=["arc_easy"]', "evaluation.limit=20", "evaluation.judge_url=http://h/v1/"]
    evaluation = load_settings("tiny", [*overrides, "evaluation.judge_model=j"]).evaluation
    assert (evaluation.tasks, evaluation.limit, evaluation.judge_url) == (["arc_easy"], 20, "http://h/v1")


def test_inputs_contain_no_setting_that_only_changes_speed() -> None:
    plain = EvaluationSettings(tasks=["a"], **JUDGE)
    faster = plain.model_copy(update={"batch_size": 64, "judge_concurrency": 1, "judge_timeout_s": 5})
    assert (faster.task_inputs(), faster.judge_inputs()) == (plain.task_inputs(), plain.judge_inputs())
    assert set(plain.task_inputs()) == {
        f"evaluation.{name}" for name in ("tasks", "num_fewshot", "limit", "chat_template")
    }
    assert plain.model_copy(update={"judge_template": "{prompt}{answer}"}).judge_inputs() != plain.judge_inputs()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_packages(EvaluationSettings())
    with pytest.raises(ConfigError, match=r"evaluation\.tasks is set, but the package lm_eval .* extra `evaluate`"):
        check_packages(EvaluationSettings(tasks=["a"]))
    with pytest.raises(ConfigError, match=r"evaluation\.judge_url is set, but the package openai .* extra `evaluate`"):
        check_packages(EvaluationSettings(**JUDGE))
