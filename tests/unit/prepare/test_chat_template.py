"""`prepare` with templates that are named, lost, dated or made for reasoning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from spin_components.data import templates
from spin_components.data.shards import Prompt, read_rows
from spin_components.errors import ConfigError, DataError, InputsChangedError
from spin_components.prepare import rendered_parts, rendering
from spin_components.prepare.input_checks import check_inputs
from spin_components.prepare.rendered_parts import RenderedParts
from spin_components.prepare.step import prepare
from spin_components.record.chat_template import read_chat_template
from spin_components.record.events import read_events
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import Manifest, read_manifest
from support.chat_tokenizers import CHATML

DATED = "{{ '[' + strftime_now('%Y-%m-%d %H:%M:%S') + ']' }}" + CHATML
FORCED = CHATML.replace("assistant\n", "assistant\n<think>\n")
SHAPE = {"max_iterations": 1, "max_epochs": [1], "shards": 1, "nodes": 1}

Make = Callable[..., Settings]


@pytest.fixture
def with_template(tiny_llama: Path, tmp_path: Path) -> Callable[[str | None], str]:
    """Copies the tiny model, with another chat template or none."""

    def copy(template: str | None) -> str:
        folder = tmp_path / "model"
        shutil.copytree(tiny_llama, folder)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config.pop("chat_template", None)
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        return str(folder)

    return copy


def prepared(settings: Settings) -> tuple[LocalRun, Manifest, list[str]]:
    """The run, the data's manifest, and the messages of the warning events."""
    sections = settings.model_dump(mode="json", include=set(Settings.model_fields))
    prepare(settings.run.uri, sections, SHAPE)
    run = LocalRun(Path(settings.run.uri))
    warnings = [event["message"] for event in read_events(run) if event["kind"] == "warning"]
    return run, read_manifest(run, layout.DATA_MANIFEST), warnings


def prompts(run: LocalRun, model: str) -> list[str]:
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    return [tokenizer.decode(row.prompt_ids) for row in read_rows(run.path(layout.train_shard(0)), Prompt)]


def test_a_run_that_sets_nothing_has_no_new_inputs_and_no_warnings(make_settings: Make) -> None:
    _, manifest, warnings = prepared(make_settings())
    assert [name for name in manifest.inputs if "template" in name] == []
    assert {"warnings", "chat_template_date"}.isdisjoint(manifest.facts)
    assert warnings == []


def test_an_interrupted_prepare_goes_on_with_the_date_of_its_first_attempt(
    make_settings: Make, with_template: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        hour_now = 8

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Clock:
            return cls(2026, 7, 31, cls.hour_now)

    def add_and_stop(parts: RenderedParts, *arguments: Any) -> None:
        add(parts, *arguments)
        raise KeyboardInterrupt

    add = RenderedParts.add
    model = with_template(DATED)
    monkeypatch.setattr(templates, "datetime", Clock)
    monkeypatch.setattr(rendered_parts, "PART_TOKENS", 1)
    monkeypatch.setattr(rendering, "_BATCH_RECORDS", 8)
    monkeypatch.setattr(RenderedParts, "add", add_and_stop)
    with pytest.raises(KeyboardInterrupt):
        prepared(make_settings(model={"base": model}))
    monkeypatch.setattr(RenderedParts, "add", add)
    Clock.hour_now = 9
    run, manifest, _ = prepared(make_settings(model={"base": model}))
    assert manifest.facts["chat_template_date"] == "2026-07-31T08:00:00"
    assert all(prompt.startswith("[2026-07-31 08:00:00]") for prompt in prompts(run, model))


def test_a_model_without_a_template_is_a_warning_event(make_settings: Make, with_template: Any) -> None:
    _, manifest, warnings = prepared(make_settings(model={"base": with_template(None)}))
    assert [message[:50] for message in warnings] == ["the model has no chat template: turns are labelled"]
    assert manifest.facts["warnings"] == warnings


def test_a_template_that_was_lost_is_taken_from_the_processor_with_a_warning(
    make_settings: Make, with_template: Any
) -> None:
    model = with_template(None)
    Path(model, "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))
    run, _, warnings = prepared(make_settings(model={"base": model}))
    assert warnings == ["the tokenizer has no chat template; its processor's is taken, from chat_template.json"]
    assert all(prompt.startswith("<|im_start|>user\n") for prompt in prompts(run, model))


def test_a_template_of_a_file_is_used_copied_and_an_input(make_settings: Make, with_template: Any) -> None:
    model = with_template(None)
    path = Path(model).parent / "mine.jinja"
    path.write_text("[mine]" + CHATML)
    settings = make_settings(model={"base": model}, data={"chat_template": str(path)})
    run, manifest, warnings = prepared(settings)
    assert warnings == []
    assert all(prompt.startswith("[mine]<|im_start|>user\n") for prompt in prompts(run, model))
    assert read_chat_template(run) == "[mine]" + CHATML
    assert manifest.inputs["data.chat_template"] == str(path)
    assert prepared(settings)[1] == manifest
    path.write_text("[other]" + CHATML)
    with pytest.raises(InputsChangedError, match=r"data.chat_template \(content\)"):
        prepared(settings)


def test_a_template_file_that_is_missing_is_refused_before_any_work(make_settings: Make, tmp_path: Path) -> None:
    settings = make_settings(data={"chat_template": "nowhere/mine.jinja"})
    with pytest.raises(ConfigError, match=r"data.chat_template = 'nowhere/mine.jinja' is not a file"):
        check_inputs(settings)
    (tmp_path / "bytes.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not text in UTF-8"):
        check_inputs(make_settings(data={"chat_template": str(tmp_path / "bytes.jinja")}))


def test_a_name_that_the_model_has_no_template_of_is_refused(make_settings: Make) -> None:
    with pytest.raises(ConfigError, match=r"data.chat_template = 'rag': .* it has default"):
        prepared(make_settings(data={"chat_template": "rag"}))


def test_all_prompts_tell_one_time_which_is_recorded(make_settings: Make, with_template: Any) -> None:
    model = with_template(DATED)
    run, manifest, _ = prepared(make_settings(model={"base": model}))
    date = manifest.facts["chat_template_date"]
    assert {prompt.partition("]")[0] for prompt in prompts(run, model)} == {f"[{date.replace('T', ' ')}"}


def test_a_given_date_is_the_one_that_the_prompts_tell(make_settings: Make, with_template: Any) -> None:
    model = with_template(DATED)
    settings = make_settings(model={"base": model}, data={"chat_template_date": "2026-07-31T09:30:05"})
    run, manifest, _ = prepared(settings)
    assert manifest.facts["chat_template_date"] == "2026-07-31T09:30:05"
    assert all(prompt.startswith("[2026-07-31 09:30:05]") for prompt in prompts(run, model))


def test_what_answers_without_reasoning_teach_is_said_with_their_number(
    make_settings: Make, with_template: Any, question_file: Path
) -> None:
    _, _, warnings = prepared(make_settings(model={"base": with_template(FORCED)}))
    (warning,) = warnings
    assert warning.startswith(f"40 of 40 human answers (the first: {question_file}, line 1) do not close the <think>")


def test_turns_that_the_template_leaves_out_are_refused_with_their_lines(
    make_settings: Make, with_template: Any, tmp_path: Path
) -> None:
    path = tmp_path / "system.jsonl"
    turns = [{"role": role, "content": f"{role} text"} for role in ("system", "user", "assistant")]
    path.write_text("".join(json.dumps({"messages": turns[index % 2 :]}) + "\n" for index in range(40)))
    base = with_template(CHATML.replace("m in messages", "m in messages if m.role != 'system'"))
    settings = make_settings(model={"base": base}, data={"train": str(path)})
    with pytest.raises(
        DataError, match=r"20 records cannot be rendered.*\n.*line 1: the chat template leaves out the sys"
    ):
        prepared(settings)
