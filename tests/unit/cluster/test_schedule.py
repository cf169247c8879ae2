"""Schedules: created, replaced, removed and listed by the command; executions of a schedule."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import json_format

from spin_components.errors import ConfigError
from spin_pipeline.cli import main
from spin_pipeline.cluster.launcher import launcher, retrain
from spin_pipeline.cluster.schedule import Trigger, parse_cron, parse_interval
from spin_pipeline.cluster.scheduled_run import execute
from spin_pipeline.deploy.cluster_settings import ClusterSettings
from support.kfp_component import run_component
from support.kfp_server import KfpServer, Look, Trouble, as_kfp_gives

COMMAND = ["schedule", "--name", "weekly", "--config", "tiny", "--run-uri", "s3://bucket/runs/{time}"]
MONDAYS = [*COMMAND, "--cron", "0 3 * * 1"]


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    """The printed text."""
    captured = capsys.readouterr()
    return captured.out + captured.err


def recur(kfp: KfpServer) -> str:
    """Execute the schedule's step once, in this process."""
    given = as_kfp_gives(kfp.schedules[0]["runtime_config"]["parameters"])
    return execute(given["order"], kfp.endpoint, given["namespace"])


@pytest.mark.parametrize(
    ("text", "cron"),
    [
        ("0 3 * * 1", "0 0 3 * * 1"),
        ("*/5 1,2 1-7 jan,feb 7", "0 */5 1,2 1-7 jan,feb 0"),
        ("30 0 3 * * 17", "30 0 3 * * 17"),
        (" 0  3 ? * mon-fri ", "0 0 3 ? * mon-fri"),
    ],
)
def test_five_cron_fields_get_a_leading_field_for_seconds(text: str, cron: str) -> None:
    assert parse_cron(text) == Trigger(cron=cron)


@pytest.mark.parametrize(
    "text", ["", "0 3 * *", "0 0 3 * * 1 2026", "@daily", "0 3 * * mon;tue", "every monday at 3 o'clock"]
)
def test_an_invalid_cron_expression_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="'0 3 \\* \\* 1' for Mondays"):
        parse_cron(text)


def test_intervals_have_units() -> None:
    assert [parse_interval(text).every_s for text in ("90", "90s", "30m", "6h", "7d")] == [90, 90, 1800, 21600, 604800]
    for text in ("0", "", "1w", "-5", "1.5h", "6 h"):
        with pytest.raises(ConfigError, match="30m, 6h or 7d"):
            parse_interval(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (COMMAND, "either --cron EXPR or --every TIME"),
        ([*MONDAYS, "--every", "6h"], "either --cron EXPR or --every TIME"),
        (["schedule", "--cron", "0 3 * * 1"], "--name NAME"),
        ([*COMMAND, "--cron", "0 3 * *"], "expected minute, hour"),
        (["schedule", "--name", "x", "--every", "6h", "--run-uri", "runs/here"], "is on this machine"),
    ],
)
def test_an_invalid_schedule_is_refused_before_any_request(
    kfp: KfpServer, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in printed(capsys)
    assert kfp.requests == []


def test_a_schedule_is_set_kept_replaced_listed_and_removed(kfp: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MONDAYS, "--service-account", "trainer"]) == 0
    assert "set: weekly, cron 0 0 3 * * 1" in printed(capsys)
    [first] = kfp.schedules
    assert first["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * 1"}}
    assert (first["max_concurrency"], first["no_catchup"], first["mode"]) == ("1", True, "ENABLE")
    assert first["service_account"] == "trainer"
    assert main([*MONDAYS, "--service-account", "trainer"]) == 0
    assert "unchanged: weekly" in printed(capsys)
    assert kfp.schedules == [first]
    assert main([*COMMAND, "--every", "6h"]) == 0
    assert "replaced: weekly, every 21600 s" in printed(capsys)
    [second] = kfp.schedules
    assert second["recurring_run_id"] != first["recurring_run_id"]
    assert main([*COMMAND, "--every", "6h"]) == 0
    assert "unchanged: weekly" in printed(capsys), "a service account that KFP fills in is not a change"
    assert main([*COMMAND, "--every", "6h", "--name", "other"]) == 0
    assert main(["schedule", "--list"]) == 0
    assert [line.split()[:5] for line in printed(capsys).splitlines()[-2:]] == [
        ["weekly", "on", "every", "21600", "s"],
        ["other", "on", "every", "21600", "s"],
    ]
    assert main(["schedule", "--remove", "--name", "weekly"]) == 0
    assert [schedule["display_name"] for schedule in kfp.schedules] == ["other"]
    assert main(["schedule", "--remove", "--name", "weekly"]) == 2
    assert "there is no schedule weekly" in printed(capsys)


def test_two_schedules_of_one_name_are_never_enabled_even_after_interruptions(
    kfp: KfpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPIN_KFP_DEADLINE_S", "0.5")
    assert main(MONDAYS) == 0
    for path in ("/recurringruns/", ":disable", ":enable"):
        kfp.troubles = [Trouble(method, path, status=500, times=50) for method in ("DELETE", "POST")]
        assert main([*COMMAND, "--every", f"{len(path)}h"]) == 1
        assert sum(schedule["mode"] == "ENABLE" for schedule in kfp.schedules) <= 1
        kfp.troubles = []
        assert main([*COMMAND, "--every", f"{len(path)}h"]) == 0, "repeating the command completes it"
        assert [schedule["mode"] for schedule in kfp.schedules] == ["ENABLE"]
    kfp.troubles = [Trouble("POST", "/recurringruns", after=True)]
    assert main([*COMMAND, "--every", "1h"]) == 0
    assert len(kfp.schedules) == 1, "a lost response creates nothing twice"


def test_each_execution_submits_and_follows_a_new_run(kfp: KfpServer) -> None:
    assert main(MONDAYS) == 0
    kfp.looks = [Look("RUNNING"), Look("SUCCEEDED")]
    assert recur(kfp) == "done"
    [run] = kfp.runs
    assert run["runtime_config"]["parameters"]["run_uri"].startswith("s3://bucket/runs/2")
    assert run["runtime_config"]["parameters"]["epochs"] == "2"
    kfp.looks = [Look("FAILED")]
    kfp.stores["runs"].clear()
    with pytest.raises(SystemExit) as caught:
        recur(kfp)
    assert caught.value.code == 1


def test_the_component_submits_a_run_where_kfp_starts_it(kfp: KfpServer, tmp_path: Path) -> None:
    # KFP's client cannot be imported in a component's own process
    assert main(MONDAYS) == 0
    given = as_kfp_gives(kfp.schedules[0]["runtime_config"]["parameters"])
    ended, returned = run_component(retrain, {**given, "endpoint": kfp.endpoint}, tmp_path / "done")
    assert (ended.returncode, returned) == (0, {"Output": "done"}), ended.stderr
    assert len(kfp.runs) == 1
    kfp.looks = [Look("FAILED")]
    ended, returned = run_component(retrain, {**given, "endpoint": kfp.endpoint}, tmp_path / "failed")
    assert (ended.returncode, returned) == (1, {})
    assert "circular import" not in ended.stderr


def test_an_unfinished_run_is_followed_instead_of_starting_another(kfp: KfpServer) -> None:
    assert main(MONDAYS) == 0
    assert main(["submit", "--config", "tiny", "--run-uri", "s3://bucket/runs/mine"]) == 0
    assert recur(kfp) == "done", "a run submitted by hand does not belong to the schedule"
    assert len(kfp.runs) == 2
    kfp.runs[1]["state"] = "RUNNING"
    assert recur(kfp) == "done"
    assert len(kfp.runs) == 2


def test_data_that_was_trained_on_before_does_not_fail_the_schedule(
    kfp: KfpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*MONDAYS, "--once-for-data", "--run-uri", "s3://bucket/run"]) == 0
    assert main(["submit", "--config", "tiny", "--run-uri", "s3://bucket/run", "--once-for-data"]) == 0
    assert recur(kfp) == "nothing new"
    assert "nothing to do: run tiny" in printed(capsys)


def test_an_invalid_submission_fails_the_step_with_its_error(
    kfp: KfpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(MONDAYS) == 0
    kfp.troubles = [Trouble("POST", "/runs", status=403, times=9)]
    with pytest.raises(SystemExit) as caught:
        recur(kfp)
    assert caught.value.code == 2
    assert "ClusterAccessError: starting the run" in printed(capsys)


def test_the_step_of_a_schedule_is_small_without_time_limit_and_not_retried() -> None:
    cluster = ClusterSettings(timeout_s=60, retries=3, image_prefix="registry/spin", image_tag="7")
    pipeline = launcher(cluster)
    ir = json_format.MessageToDict(pipeline.pipeline_spec)
    platform = json_format.MessageToDict(pipeline.platform_spec)["platforms"]["kubernetes"]["deploymentSpec"]
    [task] = ir["root"]["dag"]["tasks"].values()
    assert "retryPolicy" not in task, "a retry would submit another run after a failed one"
    [executor] = ir["deploymentSpec"]["executors"].values()
    assert executor["container"]["image"] == "registry/spin/cpu:7"
    assert executor["container"]["resources"]["resourceMemoryLimit"] == "2Gi"
    [config] = platform["executors"].values()
    assert "activeDeadlineSeconds" not in config
    assert config["podMetadata"]["labels"]["access-ml-pipeline"] == "true"
    assert config["secretAsEnv"][0]["secretName"] == "spin-storage"
