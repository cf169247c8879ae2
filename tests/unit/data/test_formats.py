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


SAILOR = Message("system", "Speak like a sailor.")
EARLIER = (Message("user", "I am Ada."), Message("assistant", "Good day."))


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"instruction": "Hi", "output": "Hello", "system": SAILOR.content}, [SAILOR, Message("user", "Hi")]),
        ({"prompt": "Hi", "response": "Hello", "system": SAILOR.content}, [SAILOR, Message("user", "Hi")]),
        ({"messages": [user("Hi"), assistant("Hello")], "system": SAILOR.content}, [SAILOR, Message("user", "Hi")]),
        (
            {"messages": [{"role": "system", "content": SAILOR.content}, user("Hi"), assistant("Hello")]}
            | {"system": SAILOR.content},
            [SAILOR, Message("user", "Hi")],
        ),
        ({"real": [user("Hi"), assistant("Hello")], "system_prompt": SAILOR.content}, [SAILOR, Message("user", "Hi")]),
        (
            {"instruction": "Hi", "output": "Hello", "system": SAILOR.content, "history": [["I am Ada.", "Good day."]]},
            [SAILOR, *EARLIER, Message("user", "Hi")],
        ),
        ({"prompt": "Hi", "response": "Hello", "history": [], "tools": "[]"}, [Message("user", "Hi")]),
        ({"prompt": "Hi", "completion": "Hello", "input": "text"}, [Message("user", "Hi\n\ntext")]),
        ({"instruction": "Hi", "context": "text", "response": "Hello"}, [Message("user", "Hi\n\ntext")]),
        ({"instruction": "Hi", "context": "", "response": "Hello", "category": "qa"}, [Message("user", "Hi")]),
        ({"prompt": "Hi", "chosen": [assistant("Hello")], "rejected": [assistant("No")]}, [Message("user", "Hi")]),
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "No"}, [Message("user", "Hi")]),
        ({"prompt": [user("Hi")], "chosen": [assistant("Hello")]}, [Message("user", "Hi")]),
        ({"prompt": "Hi", "chosen": [user("Hi"), assistant("Hello")]}, [Message("user", "Hi")]),
        ({"conversations": [user("Hi"), assistant("Hello")]}, [Message("user", "Hi")]),
        ({"messages": [{"role": "developer", "content": "x"}, user("Hi"), assistant("Hello")]}, None),
    ],
)
def test_keys_that_carry_text_are_read(record: Any, prompt: list[Message] | None) -> None:
    conversation = parse_record(record)
    assert conversation.prompt == tuple(prompt or [Message("system", "x"), Message("user", "Hi")])
    assert (conversation.answer, conversation.unread) == ("Hello", ())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tools", [{"name": "f"}], "tools = .* holds tools to call"),
        ("tools", '[{"name": "f"}]', "tools = .* holds tools to call"),
        ("context", "A long text.", "context = .* holds text with no place in a list of turns: put it into a turn"),
        ("input", "A long text.", "input = .* holds text with no place"),
        ("history", [["a", "b"]], "history = .* put them into the list"),
        ("reasoning", "First, ...", "reasoning = .*<think>"),
        ("images", ["a.png"], "images = .* only text can be trained on"),
        ("weight", 0.5, "weight is 0.5"),
        ("system", 3, "system is a number, expected a string"),
    ],
)
def test_keys_that_have_no_place_in_turns_are_refused(key: str, value: object, message: str) -> None:
    record = {"messages": [user("Hi"), assistant("Hello")], key: value}
    with pytest.raises(ValueError, match=message):
        parse_record(record)
    assert parse_record({**record, key: None}) == HI


def test_text_that_a_turn_repeats_is_not_refused() -> None:
    record = {"messages": [user("A long text. Why?"), assistant("Hello")], "context": "A long text."}
    assert parse_record(record).unread == ()


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"weight": 0}, r"messages\[1\].weight is 0, so the record's answer is not to be trained on"),
        ({"train": False}, r"messages\[1\].train is false"),
        ({"reasoning_content": "First"}, r"messages\[1\].reasoning_content is \"First\": .*<think>"),
        ({"tool_calls": [{"name": "f"}]}, r"messages\[1\].tool_calls is .*only turns of text"),
    ],
)
def test_keys_of_a_turn_that_change_what_it_says_are_refused(turn: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_record({"messages": [user("Hi"), {**assistant("Hello"), **turn}]})
    empty = dict.fromkeys(turn)
    assert parse_record({"messages": [user("Hi"), {**assistant("Hello"), **empty}]}) == HI
    assert parse_record({"messages": [user("Hi"), {**assistant("Hello"), "weight": 1}]}) == HI


@pytest.mark.parametrize("speaker", ["tool", "observation", "function_call", "function_response"])
def test_a_tools_turn_is_refused_by_its_name(speaker: str) -> None:
    turns = [("human", "Hi"), (speaker, "{}"), ("gpt", "Hello")]
    record = {"conversations": [{"from": who, "value": said} for who, said in turns]}
    with pytest.raises(ValueError, match=rf"conversations\[1\] is of the speaker '{speaker}', a tool's turn.*drop the"):
        parse_record(record)


@pytest.mark.parametrize(("human", "model"), [("human", "gpt"), ("user", "chatgpt"), ("prompter", "bing")])
def test_sharegpts_speakers_are_known(human: str, model: str) -> None:
    assert parse_record({"conversations": [{"from": human, "value": "Hi"}, {"from": model, "value": "Hello"}]}) == HI


def test_two_system_turns_are_refused() -> None:
    record = {"messages": [{"role": "system", "content": "a"}, user("Hi"), assistant("Hello")], "system": "b"}
    with pytest.raises(ValueError, match=r"system holds a system turn.*messages\[0\]; keep one"):
        parse_record(record)


def test_an_answer_that_was_judged_bad_is_refused() -> None:
    with pytest.raises(ValueError, match="label is false"):
        parse_record({"prompt": "Hi", "completion": "No", "label": False})
    assert parse_record({"prompt": "Hi", "completion": "Hello", "label": True}) == HI


def test_text_that_is_in_no_turn_is_named() -> None:
    record = {"prompt": "Hi", "response": "Hello", "notes": "Not in any turn.", "source": "web", "text": "Hello"}
    assert parse_record(record).unread == ("notes",)
    turns = [{**user("Hi you"), "note": "two words"}, assistant("Hello")]
    assert parse_record({"prompt": "Hi you", "messages": turns}).unread == ("messages[].note",)


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ("text here", "history is a string, expected a list of"),
        ([["a"]], r"history\[0\] is a list, expected a list of two strings"),
        ([["a", 1]], r"history\[0\]\[1\] is a number"),
    ],
)
def test_a_wrong_history_is_refused(history: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_record({"instruction": "Hi", "output": "Hello", "history": history})
