"""A fork, a reproduction and an export take over what was trained by another run, and never whom that run trusted."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from spin_components.errors import ConfigError, IntegrityError
from spin_components.model.lora.files import Base, write_adapter
from spin_components.prepare.schedule_changes import record_schedules
from spin_components.record.history import read_history
from spin_components.settings.inheritance import OWN, SECTIONS, inherited, left_out
from spin_components.settings.mistakes import parse_settings
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.digests import digest_of, digest_tree
from spin_components.store.local import LocalRun
from spin_components.store.manifests import Manifest
from spin_pipeline.cli import main
from spin_pipeline.commands.options import tell_left_out
from spin_pipeline.config import check_settings
from spin_pipeline.runs.published import forked_values
from spin_pipeline.runs.reproduction.plan import plan

ELSEWHERE = "https://elsewhere.example/v1"
TRUSTING: dict[str, dict[str, Any]] = {
    "model": {"trust_remote_code": True},
    "evaluation": {"tasks": ["arc_easy"], "trust_task_code": True, "judge_url": ELSEWHERE, "judge_model": "any"},
    "tracking": {"mlflow_uri": ELSEWHERE, "wandb_project": "theirs", "tensorboard": True},
}


@pytest.fixture
def hostile(finished: LocalRun, tmp_path: Path) -> LocalRun:
    """A finished run whose record trusts code, names addresses, and brings settings of pods."""
    shutil.copytree(finished.root, tmp_path / "theirs")
    run = LocalRun(tmp_path / "theirs")
    record = run.read_json(layout.RUN)
    for section, table in TRUSTING.items():
        record["settings"][section] |= table
    record["settings"]["cluster"] = {"image_prefix": "elsewhere.example/images", "env": {"LD_PRELOAD": "theirs.so"}}
    run.write_json(layout.RUN, record)
    return run


def assert_trusts_nobody(settings: Any) -> None:
    assert not settings.model.trust_remote_code
    assert not settings.evaluation.trust_task_code
    assert (settings.evaluation.judge_url, settings.evaluation.judge_model) == ("", "")
    assert settings.tracking == type(settings.tracking)()
    assert settings.cluster == type(settings.cluster)()
    assert ELSEWHERE not in settings.model_dump_json()


def test_a_fork_takes_over_what_was_trained_and_not_whom_to_trust(hostile: LocalRun, tmp_path: Path) -> None:
    forked = check_settings(forked_values(hostile, "1"), [], str(tmp_path / "mine"), source="the test")
    assert_trusts_nobody(forked)
    recorded = hostile.read_json(layout.RUN)["settings"]
    kept = forked.model_dump(mode="json")
    for section in ("data", "spin", "objective", "generation", "training", "lora", "validation", "selection"):
        assert {key: kept[section][key] for key in recorded[section]} == recorded[section]
    assert forked.evaluation.tasks == ["arc_easy"]


def test_what_the_command_says_itself_holds(hostile: LocalRun, tmp_path: Path) -> None:
    said = ["model.trust_remote_code=true", "tracking.mlflow_uri=https://mine.example"]
    forked = check_settings(forked_values(hostile, "1"), said, str(tmp_path / "mine"), source="the test")
    assert forked.model.trust_remote_code
    assert forked.tracking.mlflow_uri == "https://mine.example"


def test_a_reproduction_trusts_only_whom_its_command_names(hostile: LocalRun, tmp_path: Path) -> None:
    history, into = read_history(hostile), str(tmp_path / "again")
    assert_trusts_nobody(plan(hostile, history, into, None).settings)
    said = ["model.trust_remote_code=true", "evaluation.trust_task_code=true"]
    settings = plan(hostile, history, into, None, said).settings
    assert settings.model.trust_remote_code
    assert settings.evaluation.trust_task_code
    with pytest.raises(ConfigError, match="reproduced with its own settings"):
        plan(hostile, history, into, None, ["training.lr=1"])


def test_task_files_are_taken_from_the_runs_own_copy(hostile: LocalRun) -> None:
    record = hostile.read_json(layout.RUN)
    record["settings"]["evaluation"]["task_files"] = "/etc/theirs"
    hostile.write_json(layout.RUN, record)
    assert "task_files" not in forked_values(hostile, "1")["evaluation"]
    hostile.write_json(layout.inputs_manifest("tasks"), Manifest(step="prepare", inputs={}).model_dump(mode="json"))
    assert forked_values(hostile, "1")["evaluation"]["task_files"] == hostile.uri_of(layout.TASKS)


def test_the_command_names_what_it_did_not_take_over(hostile: LocalRun, capsys: pytest.CaptureFixture[str]) -> None:
    tell_left_out(hostile, argparse.Namespace(overrides=["evaluation.judge_url=https://mine.example/v1"]))
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "model.trust_remote_code, evaluation.trust_task_code, evaluation.judge_model, tracking.tensorboard" in line
    assert "evaluation.judge_url" not in line
    assert ELSEWHERE not in line


def test_a_record_without_trust_says_nothing(finished: LocalRun, capsys: pytest.CaptureFixture[str]) -> None:
    tell_left_out(finished, argparse.Namespace(overrides=[]))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("settings", [None, [], "text", {"model": []}, {"model": None}])
def test_a_record_that_is_not_made_of_tables_is_refused(settings: object) -> None:
    for read in (inherited, left_out):
        with pytest.raises(IntegrityError, match=r"run\.json: its settings are not tables by section"):
            read(settings, source="s3://theirs/run.json")


def test_every_setting_that_leads_to_code_or_to_an_address_is_the_callers_own() -> None:
    """A new setting of such a name must be decided on: taken over here, or own."""
    words = ("trust", "url", "uri", "secret", "env", "image", "command", "endpoint", "file")
    names = {
        f"{section}.{key}"
        for section, field in Settings.model_fields.items()
        for key in field.annotation.model_fields  # type: ignore[union-attr]
        if any(word in key for word in words)
    }
    of_whole_sections = {name for name in names if name.partition(".")[0] not in SECTIONS}
    assert names - of_whole_sections <= set(OWN)
    assert set(Settings.model_fields) - set(SECTIONS) == {"tracking", "control"}


def test_a_record_that_was_changed_to_trust_is_refused_when_the_run_is_resumed(hostile: LocalRun) -> None:
    recorded = {name: table for name, table in hostile.read_json(layout.RUN)["settings"].items() if name != "cluster"}
    own = parse_settings(
        {**recorded, "model": {**recorded["model"], "trust_remote_code": False}, "evaluation": {}}, source="the test"
    )
    with pytest.raises(IntegrityError, match=r"has model\.trust_remote_code = true, but this command does not"):
        record_schedules(hostile, own)


CODE = """
from pathlib import Path
from transformers import LlamaConfig
Path({canary!r}).touch()
class Theirs(LlamaConfig):
    pass
"""


@pytest.fixture
def adapted(finished: LocalRun, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalRun:
    """A run whose base model brings code, whose record trusts it, and whose policy is an adapter."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "theirs.Theirs"}
    (model / "config.json").write_text(json.dumps(config))
    (model / "theirs.py").write_text(CODE.format(canary=str(tmp_path / "canary")))
    shutil.copytree(finished.root, tmp_path / "adapted")
    run = LocalRun(tmp_path / "adapted")
    files = digest_tree(model)
    record = run.read_json(layout.RUN)
    record["base_model"] = {"uri": str(model), "files": {name: file.model_dump() for name, file in files.items()}}
    record["settings"]["model"] |= {"trust_remote_code": True, "base": str(model)}
    record["settings"]["lora"] |= {"r": 4, "export": "adapter"}
    run.write_json(layout.RUN, record)
    policy = f"{layout.epoch(1, 0)}/policy"
    shutil.rmtree(run.path(policy))
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(model / "model.safetensors").items():
        if name.endswith("q_proj.weight"):
            layer, (num_out, num_in) = name.removesuffix(".weight"), tensor.shape
            weights |= {
                f"{layer}.lora_A.weight": torch.ones(1, num_in),
                f"{layer}.lora_B.weight": torch.ones(num_out, 1),
            }
    peft = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    with run.staged(policy) as staged:
        write_adapter(staged.path, peft, weights, Base(uri=str(model), sha256=digest_of(files)), model)
    for key in (layout.epoch_manifest(1, 0), layout.checkpoint(1)):
        manifest = Manifest.model_validate(run.read_json(key))
        uris = {name: str(run.uri_of(policy)) for name in ("policy_uri", "checkpoint_uri")}
        changed = manifest.model_copy(update={"outputs": staged.outputs, "facts": manifest.facts | uris})
        run.write_json(key, changed.model_dump(mode="json"))
    return run


def test_an_export_runs_no_code_that_only_the_record_trusts(adapted: LocalRun, tmp_path: Path) -> None:
    arguments = ["export", adapted.uri, str(tmp_path / "exported"), "--iteration", "1"]
    assert main(arguments) == 0
    assert not (tmp_path / "canary").exists()
    main(["export", adapted.uri, str(tmp_path / "trusted"), "--iteration", "1", "--trust-remote-code"])
    assert (tmp_path / "canary").exists(), "the test's code runs where it is trusted"
