"""Prompts that lack, or alter, what the record says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from spin_components.data.fidelity import Fidelity
from spin_components.data.formats import Conversation, Message
from spin_components.data.rendering import Renderer
from spin_components.data.templates import ChatTemplate
from spin_components.errors import ModelError
from support.chat_tokenizers import CHATML, CHATML_REWRITES, CHATML_STRIPS, byte_level

SYSTEM_DROPPED = CHATML.replace("m in messages", "m in messages if m.role != 'system'")
LAST_ALONE = CHATML.replace("m in messages", "m in messages[-1:]")
TWO_TURNS = CHATML.replace("m in messages", "m in messages[-3:]")
PARTS_ONLY = CHATML.replace("m.content", "(m.content | selectattr('text') | map(attribute='text') | join)")
REASONING_DROPPED = CHATML.replace("m.content", "m.content.split('</think>')[-1]")
SYSTEM_AT_THE_END = (  # as Mistral's: written before the text of the last question
    "{% for m in messages if m.role != 'system' %}{{ '[' + m.role + ']' }}"
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content + '\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>' }}{% endfor %}"
)
CHAT = (Message("system", "Be brief."), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))


def difference(text: str, prompt: Sequence[Message]) -> str | None:
    template = ChatTemplate(byte_level(text), text)
    return Fidelity(template).check(prompt, template.apply(prompt, add_generation_prompt=True))


@pytest.mark.parametrize("text", [CHATML, CHATML_STRIPS, SYSTEM_AT_THE_END])
def test_a_template_that_writes_every_turn_passes(text: str) -> None:
    assert difference(text, CHAT) is None
    assert difference(text, [Message("user", " white space \n\n around ")]) is None
    assert difference(text, [Message("user", "")]) is None


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (SYSTEM_DROPPED, r"system turn \(turn 1 of 5\)"),
        (LAST_ALONE, r"system turn \(turn 1 of 5\)"),
        (TWO_TURNS, r"system turn \(turn 1 of 5\)"),
    ],
)
def test_a_turn_that_is_left_out_is_refused(text: str, where: str) -> None:
    with pytest.raises(ValueError, match=f"leaves out the {where}.*data.chat_template"):
        difference(text, CHAT)


def test_an_earlier_turn_is_missed_even_where_its_text_occurs_elsewhere() -> None:
    prompt = (Message("user", "a"), Message("assistant", "b"), Message("user", "a"))
    with pytest.raises(ValueError, match=r"leaves out the user's turn \(turn 1 of 4\)"):
        difference(LAST_ALONE, prompt)


def test_the_same_template_passes_records_whose_turns_it_writes() -> None:
    assert difference(SYSTEM_DROPPED, CHAT[1:]) is None
    assert difference(TWO_TURNS, CHAT[1:]) is None


def test_reasoning_that_is_left_out_of_an_earlier_turn_is_told_from_altered_text() -> None:
    prompt = (Message("user", "a"), Message("assistant", "<think>\nwhy\n</think>\n\nb"), Message("user", "c"))
    assert difference(REASONING_DROPPED, prompt) == "reasoning"
    assert difference(CHATML, prompt) is None
    assert difference(CHATML_REWRITES, [Message("user", "a secret")]) == "altered"


def test_a_template_for_lists_of_parts_is_refused_at_once() -> None:
    with pytest.raises(ModelError, match=r"does not write the user's text into the prompt: .* list of parts"):
        Renderer(byte_level(PARTS_ONLY), [2], max_length=64, max_prompt_length=32)


def test_a_template_that_never_writes_the_question_is_refused() -> None:
    text = "{{ '<|im_start|>assistant\n' }}"
    with pytest.raises(ModelError, match=r"does not write the user's text into the prompt: .* not at all"):
        Renderer(byte_level(text), [2], max_length=64, max_prompt_length=32)


def test_render_tells_the_difference() -> None:
    tokenizer = byte_level(CHATML_REWRITES)
    renderer = Renderer(tokenizer, [2], max_length=256, max_prompt_length=128)
    assert renderer.render(Conversation((Message("user", "a secret"),), "b")).difference == "altered"
    assert renderer.render(Conversation((Message("user", "a"),), "b")).difference is None
