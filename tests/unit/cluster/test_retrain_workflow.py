"""The retraining workflow: its triggers, its command and its configuration."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

from spin_pipeline.cli import _parser
from spin_pipeline.cluster.submission import Submission
from spin_pipeline.config import load_settings

ROOT = Path(__file__).parents[3]
WORKFLOW = ROOT / ".github/workflows/retrain.yml"
CONFIG = ".github/retrain.toml"


def workflow() -> dict[Any, Any]:
    """The parsed workflow file; YAML parses the key `on` as True."""
    return dict(yaml.safe_load(WORKFLOW.read_text("utf-8")))


def test_the_workflow_is_triggered_manually_by_time_and_by_the_data_pointer() -> None:
    triggers = workflow()[True]
    assert set(triggers) == {"workflow_dispatch", "schedule", "push"}
    assert triggers["push"]["paths"] == [CONFIG]
    assert triggers["workflow_dispatch"]["inputs"]["config"]["default"] == CONFIG


def test_the_workflows_command_parses_and_its_configuration_can_be_submitted() -> None:
    words = shlex.split(workflow()["jobs"]["retrain"]["steps"][-1]["run"].partition("||")[0])
    assert words[0] == "spin-pipeline"
    options = _parser().parse_args(words[1:])
    assert (options.wait, options.once_for_data, options.config) == (True, True, "$CONFIG")
    settings = load_settings(str(ROOT / CONFIG))
    Submission(settings, continue_from=options.continue_from).check()
    assert Submission(settings).runs_folder == options.continue_from, "earlier runs are in the folder of new runs"


def test_no_secret_is_on_its_command_line() -> None:
    job = workflow()["jobs"]["retrain"]
    assert not [step for step in job["steps"] if "secrets." in step.get("run", "")]
    assert job["env"]["KFP_TOKEN"] == "${{ secrets.KFP_TOKEN }}"
