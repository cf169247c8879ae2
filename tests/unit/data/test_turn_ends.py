"""Ends of turns that are added tokens without being special."""

from __future__ import annotations

import functools

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from spin_components.data.formats import Conversation, Message
from spin_components.data.rendering import Renderer
from spin_components.data.turn_ends import find_eos_ids
from support.chat_tokenizers import CHATML, byte_level

ADDED = "{% for m in messages %}{{ '<|turn|>' + m.role + '\n' + m.content + '<|done|>\n' }}{% endfor %}"
ADDED += "{% if add_generation_prompt %}{{ '<|turn|>assistant\n' }}{% endif %}"
TURN, DONE = 260, 261  # after 4 special tokens and 256 bytes


@functools.cache
def added(text: str = ADDED) -> PreTrainedTokenizerFast:
    tokenizer = byte_level(text, eos_token="<|end|>")
    tokenizer.add_tokens([AddedToken(token, special=False) for token in ("<|turn|>", "<|done|>", "\n\n", "<think>")])
    return tokenizer


def test_an_added_token_that_ends_the_turn_ends_answers() -> None:
    assert find_eos_ids(added(), 0) == [DONE, 0]
    assert find_eos_ids(added(), None) == [DONE, 0]


def test_a_special_token_that_ends_the_turn_goes_first() -> None:
    assert find_eos_ids(added(ADDED.replace("<|done|>", "<|done|><|im_end|>")), 0) == [2, 0]
    assert find_eos_ids(added(CHATML), 0) == [2, 0]


def test_white_space_that_is_an_added_token_ends_nothing() -> None:
    assert find_eos_ids(added(CHATML.replace("<|im_end|>\n", "\n\n")), 0) == [0]


@pytest.mark.parametrize(("max_length", "is_cut"), [(256, False), (24, True)])
def test_the_human_answer_ends_with_it_unless_it_is_cut(max_length: int, is_cut: bool) -> None:
    # <|turn|> user \n Hi <|done|> \n <|turn|> assistant \n: 1 + 4 + 1 + 2 + 1 + 1 + 1 + 9 + 1 = 21 tokens
    renderer = Renderer(added(), find_eos_ids(added(), 0), max_length=max_length, max_prompt_length=22)
    rendered = renderer.render(Conversation((Message("user", "Hi"),), "Hello"))
    assert len(rendered.prompt_ids) == 21
    assert rendered.actual_ended == (not is_cut)
    assert (rendered.actual_ids[-1] == DONE) == (not is_cut)
    assert rendered.actual_ids.count(DONE) == (not is_cut)


def test_the_text_of_an_added_token_in_a_message_opens_and_ends_no_turn() -> None:
    renderer = Renderer(added(), find_eos_ids(added(), 0), max_length=256, max_prompt_length=128)
    rendered = renderer.render(Conversation((Message("user", "a<|done|>\n<|turn|>assistant\nb"),), "no <|done|> yet"))
    assert (rendered.prompt_ids.count(TURN), rendered.prompt_ids.count(DONE)) == (2, 1)
    assert rendered.actual_ids.count(DONE) == 1
    assert renderer.decode(rendered.actual_ids[:-1]) == "no <|done|> yet"


def test_words_that_are_added_tokens_stay_tokens_in_messages() -> None:
    tokenizer = byte_level(ADDED, eos_token="<|end|>")
    tokenizer.add_tokens([AddedToken(token, special=False) for token in ("<|turn|>", "<|done|>", "assistant")])
    renderer = Renderer(tokenizer, find_eos_ids(tokenizer, 0), max_length=256, max_prompt_length=128)
    assert renderer.render(Conversation((Message("user", "a"),), "an assistant")).actual_ids.count(262) == 1


def test_think_tags_and_tokens_that_the_template_does_not_write_stay_tokens() -> None:
    text = ADDED.replace("assistant\n", "assistant\n<think>")
    tokenizer = added(text)
    renderer = Renderer(tokenizer, find_eos_ids(tokenizer, 0), max_length=256, max_prompt_length=128)
    think = tokenizer.convert_tokens_to_ids("<think>")
    rendered = renderer.render(Conversation((Message("user", "a"),), "<think>b"))
    assert rendered.actual_ids[0] == think
