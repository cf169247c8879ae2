from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from spin_components.data.formats import Conversation, Message
from spin_components.data.rendering import Renderer
from spin_components.data.turn_ends import find_eos_ids
from spin_components.errors import ConfigError, ModelError
from support.chat_tokenizers import (
    CHATML,
    CHATML_NO_PROMPT,
    CHATML_REWRITES,
    CHATML_STRIPS,
    LLAMA2,
    byte_level,
    sentencepiece_like,
)


@functools.cache
def chatml(template: str = CHATML) -> PreTrainedTokenizerFast:
    return byte_level(template, eos_token="<|end|>")


def renderer(tokenizer: PreTrainedTokenizerFast, max_length: int = 4096, max_prompt_length: int = 2048) -> Renderer:
    eos_ids = find_eos_ids(tokenizer, None)
    return Renderer(tokenizer, eos_ids, max_length=max_length, max_prompt_length=max_prompt_length)


def ask(question: str, answer: str) -> Conversation:
    return Conversation((Message("user", question),), answer)


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_prompt_ids_are_those_of_the_chat_template() -> None:
    tokenizer = chatml()
    rendered = renderer(tokenizer).render(ask("Hi", "Hello"))
    turns = [{"role": "user", "content": "Hi"}]
    assert rendered.prompt_ids == tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert rendered.actual_ids == [*ids(tokenizer, "Hello"), 2]  # <|im_end|>, and not the line feed after it
    assert (rendered.actual_ended, rendered.prompt_cut) == (True, 0)


def test_earlier_turns_are_part_of_the_prompt() -> None:
    tokenizer = chatml()
    turns = (Message("system", "S"), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    rendered = renderer(tokenizer).render(Conversation(turns, "d"))
    text = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"
    assert rendered.prompt_ids == ids(tokenizer, text)
    assert rendered.actual_ids == [*ids(tokenizer, "d"), 2]


def test_pad_equal_to_eos_changes_nothing() -> None:
    tokenizer = byte_level(CHATML, eos_token="<|im_end|>", pad_token="<|im_end|>")
    assert renderer(tokenizer).render(ask("Hi", "Hello")) == renderer(chatml()).render(ask("Hi", "Hello"))


def test_an_answer_stripped_by_the_template_ends_with_eos() -> None:
    tokenizer = chatml(CHATML_STRIPS)
    rendered = renderer(tokenizer).render(ask(" Hi ", " \nHello\n"))
    assert rendered.prompt_ids == ids(tokenizer, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert rendered.actual_ids == [*ids(tokenizer, "Hello"), 2]


def test_an_answer_the_template_rewrites_is_encoded_as_given() -> None:
    tokenizer = chatml(CHATML_REWRITES)
    assert renderer(tokenizer).render(ask("Hi", "a secret")).actual_ids == [*ids(tokenizer, "a secret"), 2]


def test_a_template_without_generation_prompt_gets_the_answers_header() -> None:
    conversation = ask("Hi", "assistant")  # the answer repeats the header's word
    assert renderer(chatml(CHATML_NO_PROMPT)).render(conversation) == renderer(chatml()).render(conversation)


def test_a_template_without_eos_uses_the_tokenizers_eos() -> None:
    tokenizer = chatml("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}")
    rendered = renderer(tokenizer).render(ask("Hi", "Hello"))
    assert rendered.prompt_ids == ids(tokenizer, "user: Hi\nassistant: ")
    assert rendered.actual_ids == [*ids(tokenizer, "Hello"), 0]


def test_llama2_has_one_bos_and_its_answer_no_doubled_space() -> None:
    # <s> [INST] hi [/INST] | hello there _ </s>; on its own, the answer would start with the token of a lone ▁
    rendered = renderer(sentencepiece_like(LLAMA2)).render(ask("hi", "hello there"))
    assert rendered.prompt_ids == [1, 3, 5, 4]
    assert rendered.actual_ids == [6, 7, 8, 2]


def test_a_role_the_template_refuses_is_an_error_with_its_message() -> None:
    with pytest.raises(ValueError, match=r"rejects turns of system, user \(no system role\)"):
        renderer(sentencepiece_like(LLAMA2)).render(
            Conversation((Message("system", "x"), Message("user", "hi")), "hello")
        )


def test_special_tokens_in_messages_are_plain_text() -> None:
    tokenizer = chatml()
    rendered = renderer(tokenizer).render(ask("Say <|im_end|>", "<|im_end|> it is. <|end|>\ufdd0"))
    assert rendered.prompt_ids.count(2) == 1  # the user's turn ends once
    assert rendered.actual_ids.count(2) == 1
    assert rendered.actual_ids[-1] == 2
    assert 0 not in rendered.actual_ids
    assert tokenizer.decode(rendered.actual_ids[:-1]) == "<|im_end|> it is. <|end|>\ufdd0"


def test_an_eos_the_tokenizer_cannot_split_is_refused() -> None:
    tokenizer = sentencepiece_like("{% for m in messages %}{{ m.content + '▁there' }}{% endfor %}")
    with pytest.raises(ValueError, match="'▁there', which this tokenizer cannot encode as plain text"):
        Renderer(tokenizer, [7], max_length=9, max_prompt_length=5).render(ask("hi", "hello▁there"))


def test_an_answer_without_tokens_is_refused() -> None:
    tokenizer = byte_level(CHATML)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    with pytest.raises(ValueError, match="the answer has no tokens"):
        Renderer(tokenizer, [2], max_length=99, max_prompt_length=90).render(ask("hi", "\u200b"))


def test_without_a_template_turns_are_labelled() -> None:
    tokenizer = byte_level(None, adds_bos=True, bos_token="<s>", eos_token="<|end|>")
    turns = (Message("system", "S"), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    rendered = renderer(tokenizer).render(Conversation(turns, "d"))
    text = "S\n\nUser:\na\n\nAssistant:\nb<|end|>\n\nUser:\nc\n\nAssistant:\n"
    assert rendered.prompt_ids == [3, *ids(tokenizer, text)]
    assert rendered.actual_ids == [*ids(tokenizer, "d"), 0]


def test_without_a_template_no_bos_is_written_unless_the_tokenizer_adds_it() -> None:
    tokenizer = byte_level(None, bos_token="<s>", eos_token="<|end|>")
    assert 3 not in renderer(tokenizer).render(ask("a", "b")).prompt_ids


def test_a_long_prompt_keeps_its_end() -> None:
    # 3 special tokens, "user" and "assistant", 3 line feeds and the question: 3 + 4 + 9 + 3 + 10 = 29; 20 stay
    whole = renderer(chatml()).render(ask("0123456789", "x"))
    cut = renderer(chatml(), max_length=40, max_prompt_length=20).render(ask("0123456789", "x"))
    assert cut.prompt_ids == whole.prompt_ids[-20:]
    assert cut.prompt_cut == 9
    assert cut.actual_ids == whole.actual_ids


@pytest.mark.parametrize(("limit", "head"), [(20, 10), (19, 10)])
def test_a_long_prompt_may_keep_as_much_of_its_beginning_as_of_its_end(limit: int, head: int) -> None:
    record = Conversation((Message("system", "Be kind."), Message("user", "0123456789" * 9)), "x")
    whole = renderer(chatml()).render(record).prompt_ids
    cut = Renderer(chatml(), [2], max_length=99, max_prompt_length=limit, long_prompts="cut_middle").render(record)
    assert cut.prompt_ids == whole[:head] + whole[head - limit :]
    assert cut.prompt_cut == len(whole) - limit


def test_a_long_prompt_may_be_refused() -> None:
    strict = Renderer(chatml(), [2], max_length=99, max_prompt_length=29, long_prompts="refuse")
    assert len(strict.render(ask("0123456789", "x")).prompt_ids) == 29
    with pytest.raises(ValueError, match=r"the prompt has 30 tokens, expected at most data\.max_prompt_length = 29"):
        strict.render(ask("0123456789a", "x"))


def test_a_cut_answer_has_no_eos() -> None:
    # prompt 20 of 24 tokens: 4 are left; "abc" + eos fits, "abcd" + eos does not
    fits = renderer(chatml(), max_length=24, max_prompt_length=20).render(ask("0123456789", "abc"))
    cut = renderer(chatml(), max_length=24, max_prompt_length=20).render(ask("0123456789", "abcd"))
    assert (fits.actual_ids, fits.actual_ended) == ([*ids(chatml(), "abc"), 2], True)
    assert (cut.actual_ids, cut.actual_ended) == (ids(chatml(), "abcd"), False)


@pytest.mark.parametrize(("max_length", "max_prompt_length"), [(8, 8), (8, 0)])
def test_limits_without_room_are_refused(max_length: int, max_prompt_length: int) -> None:
    with pytest.raises(ConfigError, match="leave room for an answer"):
        Renderer(chatml(), [2], max_length=max_length, max_prompt_length=max_prompt_length)


@pytest.mark.parametrize("eos_ids", [[], [100_000], [-1]])
def test_impossible_eos_ids_are_refused(eos_ids: list[int]) -> None:
    with pytest.raises(ModelError, match="correct eos_token_id"):
        Renderer(chatml(), eos_ids, max_length=8, max_prompt_length=4)


def test_a_template_that_fails_on_everything_is_a_model_error() -> None:
    tokenizer = byte_level("{{ raise_exception('broken') }}", eos_token="<|end|>")
    with pytest.raises(ModelError, match="broken"):
        find_eos_ids(tokenizer, None)
    with pytest.raises(ModelError, match="broken"):
        Renderer(tokenizer, [0], max_length=8, max_prompt_length=4)


@pytest.mark.parametrize(
    ("generation_eos", "expected"),
    [(None, [2, 1]), (2, [2]), (0, [2, 0]), ([0, 2, 0], [2, 0]), ([], [2, 1])],
)
def test_the_templates_end_of_turn_comes_first(generation_eos: int | list[int] | None, expected: list[int]) -> None:
    # the tokenizer's own eos_token, <|im_start|> = 1, is wrong: it counts only where the model names none
    assert find_eos_ids(byte_level(CHATML, eos_token="<|im_start|>"), generation_eos) == expected


def test_without_a_template_the_models_eos_is_taken() -> None:
    assert find_eos_ids(byte_level(None, eos_token="<|end|>"), [3]) == [3]
    assert find_eos_ids(byte_level(None, eos_token="<|end|>"), None) == [0]
    with pytest.raises(ModelError, match="no end-of-sequence token found"):
        find_eos_ids(byte_level(None), None)


def test_the_fingerprint_follows_template_eos_and_limits() -> None:
    same = Renderer(chatml(), [2], max_length=64, max_prompt_length=32).fingerprint()
    assert same == Renderer(byte_level(CHATML), [2], max_length=64, max_prompt_length=32).fingerprint()
    others = [
        Renderer(chatml(CHATML_STRIPS), [2], max_length=64, max_prompt_length=32),
        Renderer(chatml(), [2, 0], max_length=64, max_prompt_length=32),
        Renderer(chatml(), [2], max_length=65, max_prompt_length=32),
        Renderer(chatml(), [2], max_length=64, max_prompt_length=33),
        Renderer(chatml(), [2], max_length=64, max_prompt_length=32, long_prompts="cut_middle"),
    ]
    assert len({same, *(other.fingerprint() for other in others)}) == 6
    assert len(same) == 64


def test_decode_leaves_special_tokens_out() -> None:
    rendered = renderer(chatml()).render(ask("Hi", "Hello , you"))
    assert renderer(chatml()).decode(rendered.actual_ids) == "Hello , you"


pieces = st.sampled_from(
    ["<|im_end|>", "<|im_start|>", "<|end|>", "\ufdd0", "\ufdd01;", "\n", " ", "é", "e\u0301", "한"]
)
texts = st.lists(pieces | st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=6).map("".join)
answers = texts.filter(lambda text: bool(text.strip()))


@settings(max_examples=60, deadline=None)
@given(question=texts, answer=answers)
def test_any_answer_decodes_to_itself_and_ends_once(question: str, answer: str) -> None:
    tokenizer = chatml()
    marked = "\x01" + answer + "\x01"  # \x01 stands for the answer: nothing else may hold it
    rendered = renderer(tokenizer).render(ask(question.replace("\x01", ""), marked))
    assert tokenizer.decode(rendered.actual_ids[:-1]) == marked
    assert rendered.actual_ids[-1] == 2
    assert {0, 1, 2}.isdisjoint(rendered.actual_ids[:-1])
    assert ids(tokenizer, "\x01")[0] not in rendered.prompt_ids
    assert rendered.prompt_ids.count(2) == 1
    assert rendered.prompt_ids.count(1) == 2


@settings(max_examples=60, deadline=None)
@given(question=texts, answer=answers, max_length=st.integers(2, 80), data=st.data())
def test_limits_hold_for_any_text(question: str, answer: str, max_length: int, data: st.DataObject) -> None:
    max_prompt_length = data.draw(st.integers(1, max_length - 1))
    whole = renderer(chatml()).render(ask(question, answer))
    cut = renderer(chatml(), max_length, max_prompt_length).render(ask(question, answer))
    assert len(cut.prompt_ids) + len(cut.actual_ids) <= max_length
    assert len(cut.prompt_ids) == min(len(whole.prompt_ids), max_prompt_length)
    assert cut.prompt_ids == whole.prompt_ids[cut.prompt_cut :]
    assert cut.actual_ids
    assert cut.actual_ids == whole.actual_ids[: len(cut.actual_ids)]
    assert cut.actual_ended == (cut.actual_ids[-1] == 2) == (cut.actual_ids == whole.actual_ids)


@settings(max_examples=30, deadline=None)
@given(answer=answers)
def test_a_template_that_strips_loses_only_outer_white_space(answer: str) -> None:
    tokenizer = chatml(CHATML_STRIPS)
    rendered = renderer(tokenizer).render(ask("Hi", answer))
    assert tokenizer.decode(rendered.actual_ids[:-1]) == answer.strip()
    assert rendered.actual_ids.count(2) == 1
