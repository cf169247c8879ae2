"""Templates with think blocks: human answers keep their form, and what they teach is told."""

from __future__ import annotations

from typing import Any

import pytest

from spin_components.data.formats import Conversation, Message
from spin_components.data.rendering import Renderer
from spin_components.data.templates import ChatTemplate
from support.chat_tokenizers import CHATML, byte_level

FORCED = CHATML.replace("assistant\n", "assistant\n<think>\n").replace("m.content", "m.content.split('</think>')[-1]")
# as Qwen3's: an empty block before an answer without reasoning; with enable_thinking = false, in the generation prompt
SWITCHED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and '</think>' not in m.content %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
OFF = {"enable_thinking": False}


def render(text: str, answer: str, **arguments: Any) -> tuple[Renderer, str, str, str | None]:
    """The renderer, prompt and answer as text, and the answer's case."""
    tokenizer = byte_level(text)
    template = ChatTemplate(tokenizer, text, arguments=arguments)
    renderer = Renderer(tokenizer, [2], max_length=512, max_prompt_length=256, template=template)
    rendered = renderer.render(Conversation((Message("user", "Hi"),), answer))
    return renderer, *(tokenizer.decode(ids) for ids in (rendered.prompt_ids, rendered.actual_ids)), rendered.reasoning


@pytest.mark.parametrize(
    ("answer", "case"),
    [("Hello", "inside"), ("I see.</think>\nHello", None), ("<think>I see.</think>\nHello", "reopened")],
)
def test_answers_to_a_prompt_that_opens_a_block_keep_their_form(answer: str, case: str | None) -> None:
    renderer, prompt, actual, found = render(FORCED, answer)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n")
    assert (actual, found) == (f"{answer}<|im_end|>", case)
    assert renderer.thinking is not None
    assert renderer.thinking.state == "open"


def test_an_answer_without_reasoning_follows_the_empty_block_that_the_template_writes() -> None:
    renderer, prompt, actual, case = render(SWITCHED, "Hello")
    assert prompt.endswith("<|im_start|>assistant\n")
    assert (actual, case) == ("<think>\n\n</think>\n\nHello<|im_end|>", "without")
    assert renderer.thinking is not None
    assert "after the empty <think> block that it writes" in renderer.thinking.lesson("without")


def test_an_answer_with_reasoning_is_as_the_record_has_it() -> None:
    answer = "<think>\nI see.\n</think>\n\nHello"
    assert render(SWITCHED, answer)[2:] == (f"{answer}<|im_end|>", None)
    assert render(SWITCHED, answer, **OFF)[2:] == (f"{answer}<|im_end|>", "after")


def test_with_thinking_switched_off_the_empty_block_is_the_prompts() -> None:
    _, prompt, actual, case = render(SWITCHED, "Hello", **OFF)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert (actual, case) == ("Hello<|im_end|>", None)


def test_the_switch_is_advised_only_where_the_template_has_it() -> None:
    forced, switched = render(FORCED, "Hello")[0].thinking, render(SWITCHED, "Hello")[0].thinking
    assert forced is not None
    assert switched is not None
    assert "enable_thinking" not in forced.lesson("inside")
    assert "enable_thinking = false" in switched.lesson("inside")


def test_a_template_without_think_tags_has_no_lesson() -> None:
    renderer, _, _, case = render(CHATML, "<think>I see.</think>Hello")
    assert (renderer.thinking, case) == (None, None)
