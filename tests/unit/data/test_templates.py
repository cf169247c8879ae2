"""Which chat template is taken, its arguments, and its clock."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from spin_components.data.formats import Message
from spin_components.data.rendering import Renderer
from spin_components.data.templates import ChatTemplate, model_template
from spin_components.data.turn_ends import find_eos_ids
from spin_components.errors import ConfigError, ModelError
from support.chat_tokenizers import CHATML, CHATML_STRIPS, byte_level

DATED = "{{ strftime_now('%d %b %Y %H:%M:%S') }}\n" + CHATML
HI = [Message("user", "Hi")]


def test_the_default_one_of_several_templates_is_taken_unless_another_is_named(tmp_path: Path) -> None:
    tokenizer = byte_level({"default": CHATML, "rag": CHATML_STRIPS})  # type: ignore[arg-type]
    assert model_template(tokenizer, tmp_path) == (CHATML, "")
    assert model_template(tokenizer, tmp_path, "rag") == (CHATML_STRIPS, "")
    with pytest.raises(ConfigError, match=r"data.chat_template = 'tools': .* it has default, rag"):
        model_template(tokenizer, tmp_path, "tools")


def test_several_templates_without_a_default_need_a_name(tmp_path: Path) -> None:
    tokenizer = byte_level({"chat": CHATML, "rag": CHATML_STRIPS})  # type: ignore[arg-type]
    assert model_template(tokenizer, tmp_path, "chat") == (CHATML, "")
    with pytest.raises(ConfigError, match=r"data.chat_template = '': .* it has chat, rag"):
        model_template(tokenizer, tmp_path)


@pytest.mark.parametrize("file", ["chat_template.json", "processor_config.json"])
@pytest.mark.parametrize("value", [CHATML, {"default": CHATML}, [{"name": "default", "template": CHATML}]])
def test_a_template_that_only_the_processor_has_is_taken_from_it(tmp_path: Path, file: str, value: Any) -> None:
    (tmp_path / file).write_text(json.dumps({"chat_template": value}))
    assert model_template(byte_level(None), tmp_path) == (CHATML, file)
    assert model_template(byte_level(CHATML_STRIPS), tmp_path) == (CHATML_STRIPS, "")


def test_a_model_without_any_template_has_none(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text("{}")
    (tmp_path / "chat_template.json").write_text("not JSON")
    assert model_template(byte_level(None), tmp_path) == (None, "")
    with pytest.raises(ConfigError, match=r"'rag': .* it has none"):
        model_template(byte_level(None), tmp_path, "rag")


def test_arguments_are_variables_of_the_template() -> None:
    text = CHATML + "{% if add_generation_prompt and enable_thinking is false %}[off]{% endif %}"
    tokenizer = byte_level(text)
    plain = ChatTemplate(tokenizer, text).apply(HI, add_generation_prompt=True)
    off = ChatTemplate(tokenizer, text, arguments={"enable_thinking": False}).apply(HI, add_generation_prompt=True)
    assert off == plain + "[off]"


@pytest.mark.parametrize("text", [CHATML, None])
def test_an_argument_that_no_template_reads_is_refused(text: str | None) -> None:
    with pytest.raises(ConfigError, match=r"data.chat_template_kwargs.enable_thinkin: .* no variable of this name"):
        ChatTemplate(byte_level(text), text, arguments={"enable_thinkin": False})


def test_a_template_that_lacks_an_argument_is_refused_with_the_setting_that_gives_it() -> None:
    text = "{% if not persona is defined %}{{ raise_exception('persona is required') }}{% endif %}" + CHATML
    with pytest.raises(ModelError, match=r"persona is required.*data.chat_template_kwargs"):
        find_eos_ids(byte_level(text), [2])
    given = ChatTemplate(byte_level(text), text, arguments={"persona": "a sailor"})
    assert find_eos_ids(byte_level(text), [2], given) == [2]


@pytest.mark.parametrize(("text", "tells_time"), [(DATED, True), (CHATML, False)])
def test_the_clock_stands_still_and_is_noticed(text: str, tells_time: bool) -> None:
    template = ChatTemplate(byte_level(text), text, clock=datetime(2026, 7, 31, 9, 30, 5))
    written = template.apply(HI, add_generation_prompt=False)
    assert written.startswith("31 Jul 2026 09:30:05\n") == tells_time
    assert template.tells_time == tells_time


def test_the_fingerprint_has_the_clock_and_the_arguments_only_where_they_count() -> None:
    def fingerprint(text: str, **values: Any) -> str:
        tokenizer = byte_level(text)
        template = ChatTemplate(tokenizer, text, **values)
        return Renderer(tokenizer, [2], max_length=64, max_prompt_length=32, template=template).fingerprint()

    clocks = [datetime(2026, 7, day) for day in (30, 31)]
    assert fingerprint(CHATML, clock=clocks[0]) == fingerprint(CHATML, clock=clocks[1])
    assert fingerprint(DATED, clock=clocks[0]) != fingerprint(DATED, clock=clocks[1])
    named = CHATML + "{% if name %}{{ name }}{% endif %}"
    assert fingerprint(named, arguments={"name": "a"}) != fingerprint(named, arguments={"name": "b"})


def test_a_template_that_writes_by_chance_is_refused() -> None:
    text = "{{ lipsum() }}" + CHATML
    with pytest.raises(ModelError, match="writes the same question differently each time"):
        Renderer(byte_level(text), [2], max_length=64, max_prompt_length=32)


def test_a_template_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spin_components.data.templates.LIMIT_S", 0.05)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ValueError, match=r"rejects turns of user \(it was still running after 0\.05 s of processor"):
        ChatTemplate(byte_level(CHATML), loop).apply(HI, add_generation_prompt=True)
    assert ChatTemplate(byte_level(CHATML), CHATML).apply(HI, add_generation_prompt=False).startswith("<|im_start|>")


def test_templates_that_fail_in_any_way_do_not_write_parts() -> None:
    for text in ("{{ 1 / 0 }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ messages[9].x }}"):
        assert not ChatTemplate(byte_level(CHATML), text).writes_parts()
