"""`reproduce` of runs whose prompts tell the date, whose template is a file, or whose data has a moving name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from spin_components.data.shards import Prompt, read_rows
from spin_components.record.history import read_history
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_pipeline.runs.reproduction.explain import reasons
from spin_pipeline.runs.reproduction.plan import plan
from support.chat_tokenizers import CHATML
from support.playing import begin, play

COMMIT, NEWER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
DATED = "{{ strftime_now('%Y-%m-%d %H:%M:%S') }} {{ persona }}" + CHATML


def test_a_run_with_a_dated_template_from_a_file_is_reproduced_without_the_file(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    path = tmp_path / "dated.jinja"
    path.write_text(DATED)
    given = {"chat_template": str(path), "chat_template_kwargs": {"persona": "a sailor"}}
    run = play(make_settings(data={**given, "max_train_records": 8, "validation_size": 4}))
    path.unlink()
    (policy,) = run.list("iterations", "*/epochs/*/policy/chat_template.jinja")
    assert run.path(policy).read_text() == DATED, "the published model has the template that it was trained with"
    planned = plan(run, read_history(run), str(tmp_path / "again"), None).settings
    assert planned.data.chat_template == run.uri_of(layout.CHAT_TEMPLATE)
    assert planned.data.chat_template_date == read_history(run).data.facts["chat_template_date"]
    begin(planned)
    again = LocalRun(tmp_path / "again")
    for key in (layout.train_shard(0), layout.VALIDATION):
        assert read_rows(again.path(key), Prompt) == read_rows(run.path(key), Prompt)


def test_other_dates_are_named_as_the_cause(finished: LocalRun) -> None:
    def dated(date: str | None) -> Any:
        history = read_history(finished)
        facts = {**history.data.facts, **({"chat_template_date": date} if date else {})}
        return replace(history, data=history.data.model_copy(update={"facts": facts}))

    assert reasons(dated("2026-07-30"), dated("2026-07-31"))[0] == (
        "the chat template renders the date: 2026-07-30 there, 2026-07-31 here"
    )
    assert "too old to contain" in reasons(dated(None), dated("2026-07-31"))[0]


def test_data_of_a_moving_name_is_reproduced_from_its_commit(
    finished: LocalRun, question_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "hub" / "datasets--org--questions"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for commit, text in ((COMMIT, question_file.read_text("utf-8")), (NEWER, "{}")):
        (root / "snapshots" / commit).mkdir(parents=True)
        (root / "snapshots" / commit / question_file.name).write_text(text, encoding="utf-8")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(NEWER)
    shutil.copytree(finished.root, tmp_path / "recorded")
    run = LocalRun(tmp_path / "recorded")
    record = run.read_json(layout.RUN)
    record["settings"]["data"]["train"] = "hf://datasets/org/questions"
    record["data"]["train"]["uri"] = pinned = f"hf://datasets/org/questions@{COMMIT}"
    run.write_json(layout.RUN, record)
    assert plan(run, read_history(run), None, None).settings.data.train == pinned


def test_prepare_pins_the_commit_of_a_moving_name(
    make_settings: Callable[..., Settings], question_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "hub" / "datasets--org--questions"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (root / "snapshots" / COMMIT).mkdir(parents=True)
    shutil.copy(question_file, root / "snapshots" / COMMIT / question_file.name)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    settings = make_settings(data={"train": "hf://datasets/org/questions"})
    begin(settings)
    record = LocalRun(Path(settings.run.uri)).read_json(layout.RUN)
    assert record["data"]["train"]["uri"] == f"hf://datasets/org/questions@{COMMIT}"
