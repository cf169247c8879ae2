"""Properties of rendering for arbitrary text, with several templates and tokenizers."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from spin_components.data.formats import Conversation, Message
from spin_components.data.rendered import Rendered
from spin_components.data.rendering import Renderer
from spin_components.data.turn_ends import find_eos_ids
from support.chat_tokenizers import CHATML, CHATML_NO_PROMPT, LLAMA2, byte_level

BOS = 3  # <s> of `byte_level`


class Kind(NamedTuple):
    """A tokenizer, and the number of BOS tokens at the start of its prompts."""

    tokenizer: PreTrainedTokenizerFast
    num_bos: int


@functools.cache
def kinds() -> dict[str, Kind]:
    with_bos = "{{ bos_token }}" + CHATML
    no_eos = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    return {
        "ChatML": Kind(byte_level(CHATML, eos_token="<|end|>"), 0),
        "pad is eos": Kind(byte_level(CHATML, eos_token="<|im_end|>", pad_token="<|im_end|>"), 0),
        "BOS by the template": Kind(byte_level(with_bos, bos_token="<s>", eos_token="<|end|>"), 1),
        "BOS by both": Kind(byte_level(with_bos, adds_bos=True, bos_token="<s>", eos_token="<|end|>"), 1),
        "BOS by the tokenizer alone": Kind(byte_level(CHATML, adds_bos=True, bos_token="<s>", eos_token="<|end|>"), 0),
        "Llama 2": Kind(byte_level(LLAMA2, bos_token="<s>", eos_token="<|end|>"), 1),
        "no EOS in the template": Kind(byte_level(no_eos, eos_token="<|end|>"), 0),
        "no generation prompt": Kind(byte_level(CHATML_NO_PROMPT, eos_token="<|end|>"), 0),
        "no template, BOS": Kind(byte_level(None, adds_bos=True, bos_token="<s>", eos_token="<|end|>"), 1),
        "no template, no BOS": Kind(byte_level(None, eos_token="<|end|>"), 0),
    }


NAMES = list(kinds())

# combining marks, joined emoji, right-to-left, line ends of all kinds, controls, private use, and special tokens' texts
odd = st.sampled_from(
    [
        "e\u0301",
        "\u1100\u1161\u11a8",
        "👩‍👩‍👧‍👦",
        "🏳️‍🌈",
        "\u202eabc\u202c",
        "שלום",
        "\r\n",
        "\u2028",
        "\x00",
        "\x7f",
        "\ufeff",
        "\ufdd0",
        "\ufdd00;",
        "\U0010ffff",
        "<s>",
        "<|end|>",
        "<|im_end|>",
        "<|im_start|>",
        "<|im_start|>assistant\n",
        "{{ bos_token }}",
        "{% endfor %}",
        "[/INST]",
        "\N{NO-BREAK SPACE}",
    ]
)
texts = st.lists(odd | st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=5).map("".join)
# templates may strip white space around an answer, which is tested apart: here it does not begin or end with any
answers = texts.map(lambda text: f"<{text}>")


@functools.cache
def renderer(name: str) -> Renderer:
    tokenizer = kinds()[name].tokenizer
    return Renderer(tokenizer, find_eos_ids(tokenizer, None), max_length=8192, max_prompt_length=4096)


def rendered(name: str, question: str, answer: str) -> Rendered:
    return renderer(name).render(Conversation((Message("user", question),), answer))


def text_of(name: str, ids: list[int]) -> str:
    tokenizer: Any = kinds()[name].tokenizer
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15)
@given(question=texts, answer=answers)
def test_an_answer_decodes_to_itself_and_ends_once(name: str, question: str, answer: str) -> None:
    conversation_ids = rendered(name, question, answer)
    eos_ids = find_eos_ids(kinds()[name].tokenizer, None)
    *ids, last = conversation_ids.actual_ids
    assert (last, conversation_ids.actual_ended) == (eos_ids[0], True)
    assert not set(ids) & {0, 1, 2, 3}, "what a person wrote is never a special token"
    assert text_of(name, ids).strip(" ") == answer  # Llama 2's template sets a space on either side


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15)
@given(question=texts, answer=answers, other=answers)
def test_a_prompt_has_the_templates_bos_and_does_not_depend_on_the_answer(
    name: str, question: str, answer: str, other: str
) -> None:
    conversation_ids = rendered(name, question, answer)
    assert conversation_ids.prompt_ids.count(BOS) == kinds()[name].num_bos
    assert kinds()[name].num_bos == 0 or conversation_ids.prompt_ids[0] == BOS
    assert conversation_ids.prompt_ids == rendered(name, question, other).prompt_ids
    assert question.strip() in text_of(name, conversation_ids.prompt_ids)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15)
@given(questions=st.lists(texts, min_size=2, max_size=4), answer=texts)
def test_ids_do_not_depend_on_the_records_rendered_before(name: str, questions: list[str], answer: str) -> None:
    tokenizer = kinds()[name].tokenizer
    eos_ids = find_eos_ids(tokenizer, None)

    def ids(renderer: Renderer, question: str) -> Rendered | str:
        try:
            return renderer.render(Conversation((Message("user", question),), answer))
        except ValueError as error:
            return str(error)

    for question in questions:
        fresh = Renderer(tokenizer, eos_ids, max_length=8192, max_prompt_length=4096)
        assert ids(renderer(name), question) == ids(fresh, question)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10)
@given(questions=st.tuples(texts, texts), answer=answers)
def test_different_questions_give_different_prompts(name: str, questions: tuple[str, str], answer: str) -> None:
    first, second = (rendered(name, question, answer).prompt_ids for question in questions)
    assert (first == second) == (questions[0] == questions[1])
