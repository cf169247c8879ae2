"""Turns of a conversation, read from a record's lists of messages: who speaks, and the text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Fields: TypeAlias = Mapping[str, object]

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "bot", "model"), "assistant"),
}
"""The role that a speaker's name means, in lower case."""

TOOL_ROLES = ("tool", "function", "ipython", "observation", "function_call", "function_response", "tool_call")
"""Names of turns that call a tool or hold what it gave."""

REFUSED_IN_TURN = {
    **dict.fromkeys(("tool_calls", "function_call"), "a call of a tool; only turns of text can be trained on"),
    **dict.fromkeys(
        ("reasoning_content", "reasoning", "thinking"),
        "reasoning beside the text; write it into the turn's text as the model should write it (<think>…</think>), "
        "or remove the key",
    ),
    **dict.fromkeys(("images", "image", "audio", "video"), "no text, and only text can be trained on"),
}
"""Keys of a turn that change its meaning and are refused where they have a value, with the reason."""

_TRAINED = ("weight", "train", "training")
_JSON_NAMES = {
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt, whose last turn is the user's, and the human answer to it.

    Attributes:
        unread: keys of the record that hold text which is in no turn.
    """

    prompt: tuple[Message, ...]
    answer: str
    unread: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Turn:
    """A message with its place in the record, and keys of it that hold text which is not read."""

    location: str
    message: Message
    unread: tuple[str, ...] = ()


def messages(key: str, value: object, mask: object = None) -> list[Turn]:
    """Turns of a list of {role, content} or {from, value}.

    Args:
        key: name of the list, for messages.
        value: the list.
        mask: NeMo's name of the user, where the speakers have names of their own.
    """
    items = objects(key, value)
    if key == "conversations":
        keys = [
            ("role", "content") if "role" in item and "from" not in item else ("from", "value") for _, item in items
        ]
    else:
        keys = [("role", "content")] * len(items)
    names = [text(f"{place}.{who}", item.get(who)) for (place, item), (who, _) in zip(items, keys, strict=True)]
    for (place, _), name in zip(items, names, strict=True):
        if mask is None and name.lower() in TOOL_ROLES:
            who = f"{place}.role is" if key != "conversations" else f"{place} is of the speaker"
            raise ValueError(
                f"{who} {name!r}, a tool's turn, expected 'system', 'user' or 'assistant': only text between a user "
                "and an assistant can be trained on; drop the record, or write the turn into one of theirs"
            )
    roles = _masked_roles(names, mask) if mask is not None else _common_roles(key, names)
    turns = []
    for (place, item), (who, what), role in zip(items, keys, roles, strict=True):
        _refuse_keys(place, item)
        unread = tuple(f"{key}[].{each}" for each in item if each not in (who, what) and has_text(item[each]))
        turns.append(Turn(place, Message(role, _content(f"{place}.{what}", item.get(what))), unread))
    if items and roles[-1] == "assistant":
        _refuse_untrained(*items[-1])
    return turns


def is_empty(value: object) -> bool:
    """Whether a value is empty: null, false, blank text, no items, or such a value as JSON text."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null", "None")
    if isinstance(value, dict):
        return all(is_empty(each) for each in value.values())
    return (not value and not isinstance(value, (int, float))) or value is False


def has_text(value: object) -> bool:
    """Whether a value holds text of more than one word."""
    return any(len(each.split(maxsplit=1)) > 1 for each in texts(value))


def texts(value: object) -> Iterator[str]:
    """All strings in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)


def objects(key: str, value: object) -> list[tuple[str, Fields]]:
    """The objects of a list, each with its place.

    Raises:
        ValueError: it is no list, or empty, or holds something else.
    """
    if not isinstance(value, list):
        raise ValueError(f"{key} is {kind(value)}, expected a list of turns")
    if not value:
        raise ValueError(f"{key} is an empty list, expected a user's turn and an assistant's")
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise ValueError(f"{key}[{index}] is {kind(item)}, expected an object")
    return [(f"{key}[{index}]", item) for index, item in enumerate(value)]


def text(location: str, value: object) -> str:
    """The value, a string.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, str):
        raise ValueError(f"{location} is {kind(value)}, expected a string")
    return value


def kind(value: object) -> str:
    """What a value is, in JSON's words."""
    return "missing or null" if value is None else _JSON_NAMES.get(type(value), f"a {type(value).__name__}")


def _content(location: str, value: object) -> str:
    """Text of a message whose content is a string or a list of text parts, which are joined."""
    if not isinstance(value, list):
        return text(location, value)
    parts = []
    for place, part in objects(location, value):
        if part.get("type") != "text":
            raise ValueError(f"{place}.type is {part.get('type')!r}, expected 'text': only text can be trained on")
        parts.append(text(f"{place}.text", part.get("text")))
    return "".join(parts)


def _common_roles(key: str, names: Sequence[str]) -> list[str]:
    unknown = sorted({name for name in names if name.lower() not in ROLES})
    if unknown and key == "conversations":
        raise ValueError(
            f"conversations has the speakers {unknown}, expected {sorted(ROLES)}; "
            "with other names, name the user's in the key 'mask'"
        )
    if unknown:
        index = next(index for index, name in enumerate(names) if name in unknown)
        raise ValueError(f"{key}[{index}].role is {names[index]!r}, expected 'system', 'user' or 'assistant'")
    return [ROLES[name.lower()] for name in names]


def _masked_roles(names: Sequence[str], mask: object) -> list[str]:
    """Roles of NeMo's speakers: `mask` names the user, and the one other speaker is the assistant."""
    user = text("mask", mask)
    others = sorted({name for name in names if name != user and name.lower() != "system"})
    if user not in names or len(others) > 1:
        raise ValueError(
            f"conversations has the speakers {sorted(set(names))}, expected the masked one, {user!r} (the user), "
            "and one other (the assistant)"
        )
    return ["user" if name == user else "system" if name.lower() == "system" else "assistant" for name in names]


def _refuse_keys(place: str, item: Fields) -> None:
    for key, reason in REFUSED_IN_TURN.items():
        if key in item and not is_empty(item[key]):
            raise ValueError(f"{place}.{key} is {json.dumps(item[key], default=str)[:60]}: {reason}")


def _refuse_untrained(place: str, item: Fields) -> None:
    """Refuse an answer that the record itself keeps out of training."""
    for key in _TRAINED:
        value = item.get(key)
        if isinstance(value, (bool, int, float)) and value != 1:
            raise ValueError(
                f"{place}.{key} is {json.dumps(value)}, so the record's answer is not to be trained on as it is, and "
                "SPIN weighs all answers the same; drop the record, or remove the key"
            )
