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


@pytest.mark.parametrize("measure", ["nll", "chrf", "match", "judge", "task:arc_easy", "task:arc_easy/acc_norm"])
def test_results_of_the_evaluation_may_decide(measure: str) -> None:
    selection = settings_with(evaluation={"tasks": ["arc_easy"], **JUDGE}, selection={"measure": measure}).selection
    assert selection.measure == measure
    assert selection.waits_for_evaluation == (measure not in ("nll", "chrf", "match"))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"selection": {"measure": "judge"}}, r"measure = 'judge', but there is no judge; set evaluation\.judge_url"),
        (
            {"selection": {"measure": "task:boolq/acc"}, "evaluation": {"tasks": ["arc_easy"]}},
            r"measure = 'task:boolq/acc', but evaluation\.tasks has no 'boolq'; found arc_easy\. Add it",
        ),
        ({"selection": {"measure": "task:arc_easy"}}, r"evaluation\.tasks has no 'arc_easy'; found none"),
        (
            {"selection": {"measure": "arc_easy"}},
            r"= 'arc_easy': expected 'nll', 'chrf', 'match', 'judge', or 'task:NAME",
        ),
        ({"selection": {"measure": "task:"}}, r"expected 'nll'"),
        ({"selection": {"measure": "task:a/b/c"}}, r"expected 'nll'"),
        (
            {"selection": {"measure": "judge"}, "evaluation": {**JUDGE, "judge_num_samples": 7}},
            r"needs at least 8 scored answers, but evaluation\.judge_num_samples is 7",
        ),
        (
            {"selection": {"measure": "judge"}, "evaluation": JUDGE, "validation": {"num_samples": 7}},
            r"measure = 'judge' compares sampled answers, of which at least 8 are needed, but .* is 7",
        ),
    ],
)
def test_a_measure_that_could_never_decide_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_with(**sections)


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
