from __future__ import annotations

from typing import Any

import pytest

from spin_components.data.formats import Conversation, Message, parse_record

HI = Conversation((Message("user", "Hi"),), "Hello")


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def assistant(content: object) -> dict[str, object]:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [user("Hi"), assistant("Hello")]},
        {"prompt": "Hi", "response": "Hello"},
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": [user("Hi")], "completion": [assistant("Hello")]},
        {"prompt": [user("Hi")], "completion": "Hello"},
        {"prompt": "Hi", "completion": [assistant("Hello")]},
        {"instruction": "Hi", "output": "Hello"},
        {"instruction": "Hi", "input": " ", "output": "Hello"},
        {
            "system": "",
            "conversations": [{"from": "User", "value": "Hi"}, {"from": "Assistant", "value": "Hello"}],
            "mask": "User",
        },
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"conversations": [{"from": "User", "value": "Hi"}, {"from": "Assistant", "value": "Hello"}]},
        {"real": [user("Hi"), assistant("Hello")], "generated": [user("Hi"), assistant("Nope")]},
    ],
)
def test_every_form_gives_the_same_conversation(record: object) -> None:
    assert parse_record(record) == HI


def test_an_instruction_is_followed_by_its_input() -> None:
    record = {"instruction": "Translate.", "input": "Bonjour", "output": "Hello"}
    assert parse_record(record) == Conversation((Message("user", "Translate.\n\nBonjour"),), "Hello")


def test_all_turns_before_the_last_answer_are_the_prompt() -> None:
    turns = [{"role": "system", "content": "Be kind"}, user("a"), assistant("b"), user("c"), assistant("d")]
    expected = (Message("system", "Be kind"), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    assert parse_record({"messages": turns}) == Conversation(expected, "d")


def test_nemo_speakers_may_have_any_name_and_the_masked_one_is_the_user() -> None:
    record = {
        "system": "Be kind",
        "conversations": [{"from": "Alice", "value": "Hi"}, {"from": "Bob", "value": "Hello"}],
        "mask": "Alice",
    }
    assert parse_record(record) == Conversation((Message("system", "Be kind"), Message("user", "Hi")), "Hello")


def test_answers_keep_their_white_space() -> None:
    assert parse_record({"prompt": " Hi\n", "response": "\n Hello "}) == Conversation(
        (Message("user", " Hi\n"),), "\n Hello "
    )


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert parse_record({"messages": [user("Hi"), assistant(parts)]}) == HI


def test_a_null_key_is_an_absent_key() -> None:
    assert parse_record({"messages": None, "prompt": "Hi", "response": "Hello"}) == HI


def test_messages_are_preferred_to_a_prompt_beside_them() -> None:
    # the form of ultrachat_200k: `prompt` repeats the first message
    assert parse_record({"prompt": "Hi", "prompt_id": "1", "messages": [user("Hi"), assistant("Hello")]}) == HI


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "a list, expected an object"),
        (None, "missing or null, expected an object"),
        ({}, r"keys found \(none\)"),
        ({"text": "x", "prompt": "y"}, r"keys found \('prompt', 'text'\).*messages; .*instruction"),
        ({"prompt": "Hi", "response": ""}, "response, the assistant's turn, is empty"),
        ({"prompt": "Hi", "response": " \n\t"}, "response, the assistant's turn, is empty"),
        ({"prompt": "", "response": "x"}, "prompt, the user's turn, is empty"),
        ({"prompt": 3, "response": "x"}, "prompt is a number, expected a list"),
        ({"instruction": "x", "output": ["y"]}, "output is a list, expected a string"),
        ({"messages": "x"}, "messages is a string, expected a list"),
        ({"messages": []}, "messages is an empty list"),
        ({"messages": ["x"]}, r"messages\[0\] is a string, expected an object"),
        ({"messages": [user("x")]}, r"messages\[0\] has role 'user' at the end, expected 'assistant'"),
        ({"messages": [assistant("x")]}, r"messages\[0\] has role 'assistant', expected 'user'"),
        ({"messages": [user("x"), user("y")]}, r"messages\[1\] has role 'user', expected 'assistant'"),
        ({"messages": [user("x"), {"role": "system", "content": "y"}]}, r"messages\[1\] has role 'system'"),
        ({"messages": [user("x"), {"role": "tool", "content": "y"}]}, r"messages\[1\].role is 'tool'"),
        ({"messages": [user("x"), {"content": "y"}]}, r"messages\[1\].role is missing or null"),
        ({"messages": [user("x"), {"role": "assistant"}]}, r"messages\[1\].content is missing or null"),
        ({"messages": [user("x"), assistant(1.5)]}, r"messages\[1\].content is a number, expected a string"),
        ({"messages": [user([{"type": "image"}]), assistant("y")]}, r"content\[0\].type is 'image', expected 'text'"),
        ({"messages": [{"role": "system", "content": " "}]}, "there is no turn at the end"),
        ({"real": [user("x")]}, r"real\[0\] has role 'user' at the end"),
        ({"conversations": [{"from": "Al", "value": "x"}]}, r"speakers \['Al'\], expected \['assistant', .*'mask'"),
        ({"conversations": [{"from": "Al", "value": "x"}], "mask": "Bo"}, r"speakers \['Al'\], expected .* 'Bo'"),
        ({"conversations": [{"value": "x"}]}, r"conversations\[0\].from is missing"),
    ],
)
def test_a_wrong_record_says_what_was_found_and_expected(record: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_record(record)


def test_a_masked_assistant_is_refused_as_the_last_turn() -> None:
    turns = [{"from": "User", "value": "x"}, {"from": "Assistant", "value": "y"}]
    with pytest.raises(ValueError, match=r"conversations\[0\] has role 'assistant', expected 'user'"):
        parse_record({"conversations": turns, "mask": "Assistant"})
