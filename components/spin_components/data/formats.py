"""Source formats: parsing of a data set's records, in the common formats, to conversations.

    messages                           chat: a list of {role, content}
    real (generated is ignored)        the authors' (uclaml/SPIN): lists of {role, content}
    conversations (system, mask)       NeMo SFT chat and ShareGPT: a list of {from, value}
    prompt + response or completion    strings, or TRL's lists of {role, content}
    instruction (input) + output       Alpaca

The first format of this list whose keys are all present is used; a key with the value null counts as absent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

FORMS = (
    "messages; real (with generated); conversations; prompt + response; prompt + completion; "
    "instruction (with input) + output"
)

_COMMON_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
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
    """A prompt, whose last turn is the user's, and the human answer to it."""

    prompt: tuple[Message, ...]
    answer: str


def parse_record(record: object) -> Conversation:
    """Parse a decoded record; unknown keys are ignored.

    Raises:
        ValueError: no format has its keys, or the content is invalid; the message says what was found and expected.
    """
    if not isinstance(record, dict):
        raise ValueError(f"the record is {_kind(record)}, expected an object with the keys of one of: {FORMS}")
    fields = {key: value for key, value in record.items() if value is not None}
    for keys, parse in _PARSERS:
        if all(key in fields for key in keys):
            return _conversation(parse(fields))
    keys_found = ", ".join(sorted(repr(key) for key in fields)) or "none"
    raise ValueError(f"no known format has the keys found ({keys_found}); expected the keys of one of: {FORMS}")


_Fields: TypeAlias = Mapping[str, object]
_Located: TypeAlias = tuple[str, Message]  # a turn with its path in the record, for error messages


def _from_messages(fields: _Fields) -> list[_Located]:
    return _messages("messages", fields["messages"])


def _from_real(fields: _Fields) -> list[_Located]:
    return _messages("real", fields["real"])


def _from_conversations(fields: _Fields) -> list[_Located]:
    turns = _objects("conversations", fields["conversations"])
    names = [_text(f"{location}.from", turn.get("from")) for location, turn in turns]
    roles = _roles(names, fields.get("mask"))
    located = [
        (location, Message(role, _text(f"{location}.value", turn.get("value"))))
        for role, (location, turn) in zip(roles, turns, strict=True)
    ]
    system = _text("system", fields.get("system", ""))
    return [("system", Message("system", system)), *located] if system.strip() else located


def _from_prompt(answer_key: str) -> Callable[[_Fields], list[_Located]]:
    def parse(fields: _Fields) -> list[_Located]:
        return [*_turns("prompt", "user", fields["prompt"]), *_turns(answer_key, "assistant", fields[answer_key])]

    return parse


def _from_instruction(fields: _Fields) -> list[_Located]:
    instruction = _text("instruction", fields["instruction"])
    extra = _text("input", fields.get("input", ""))
    prompt = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    answer = _text("output", fields["output"])
    return [("instruction", Message("user", prompt)), ("output", Message("assistant", answer))]


_PARSERS: tuple[tuple[tuple[str, ...], Callable[[_Fields], list[_Located]]], ...] = (
    (("messages",), _from_messages),
    (("real",), _from_real),
    (("conversations",), _from_conversations),
    (("prompt", "response"), _from_prompt("response")),
    (("prompt", "completion"), _from_prompt("completion")),
    (("instruction", "output"), _from_instruction),
)


def _conversation(turns: Sequence[_Located]) -> Conversation:
    """Check the order of roles and that no turn is blank; a blank system message is dropped."""
    if turns and turns[0][1].role == "system" and not turns[0][1].content.strip():
        turns = turns[1:]
    expected = "user"
    for index, (location, message) in enumerate(turns):
        if index == 0 and message.role == "system":
            continue
        if message.role != expected:
            raise ValueError(
                f"{location} has role {message.role!r}, expected {expected!r}: an optional system message, "
                "then user and assistant in turn, the assistant last"
            )
        if not message.content.strip():
            raise ValueError(f"{location}, the {message.role}'s turn, is empty, expected text")
        expected = "assistant" if expected == "user" else "user"
    if not turns or turns[-1][1].role != "assistant":
        problem = f"{turns[-1][0]} has role {turns[-1][1].role!r}" if turns else "there is no turn"
        raise ValueError(
            f"{problem} at the end, expected 'assistant'; SPIN needs a human answer to play against: "
            "drop the record or add the answer"
        )
    return Conversation(tuple(message for _, message in turns[:-1]), turns[-1][1].content)


def _roles(names: Sequence[str], mask: object) -> list[str]:
    """Roles of NeMo's speakers: `mask` names the user, and the one other speaker is the assistant."""
    if mask is None:
        unknown = sorted({name for name in names if name.lower() not in _COMMON_ROLES})
        if unknown:
            raise ValueError(
                f"conversations has the speakers {unknown}, expected {sorted(_COMMON_ROLES)}; "
                "with other names, name the user's in the key 'mask'"
            )
        return [_COMMON_ROLES[name.lower()] for name in names]
    user = _text("mask", mask)
    others = sorted({name for name in names if name != user and name.lower() != "system"})
    if user not in names or len(others) > 1:
        raise ValueError(
            f"conversations has the speakers {sorted(set(names))}, expected the masked one, {user!r} (the user), "
            "and one other (the assistant)"
        )
    return ["user" if name == user else "system" if name.lower() == "system" else "assistant" for name in names]


def _turns(key: str, role: str, value: object) -> list[_Located]:
    """Turns of a value that is a string, one turn of `role`, or a list of messages."""
    return [(key, Message(role, value))] if isinstance(value, str) else _messages(key, value)


def _messages(key: str, value: object) -> list[_Located]:
    located = []
    for location, item in _objects(key, value):
        role = _text(f"{location}.role", item.get("role"))
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"{location}.role is {role!r}, expected 'system', 'user' or 'assistant'")
        located.append((location, Message(role, _content(f"{location}.content", item.get("content")))))
    return located


def _objects(key: str, value: object) -> list[tuple[str, Mapping[str, object]]]:
    if not isinstance(value, list):
        raise ValueError(f"{key} is {_kind(value)}, expected a list of turns")
    if not value:
        raise ValueError(f"{key} is an empty list, expected a user's turn and an assistant's")
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise ValueError(f"{key}[{index}] is {_kind(item)}, expected an object")
    return [(f"{key}[{index}]", item) for index, item in enumerate(value)]


def _content(location: str, value: object) -> str:
    """Text of a message whose content is a string or a list of text parts, which are joined."""
    if not isinstance(value, list):
        return _text(location, value)
    texts = []
    for part_location, part in _objects(location, value):
        if part.get("type") != "text":
            raise ValueError(
                f"{part_location}.type is {part.get('type')!r}, expected 'text': only text can be trained on"
            )
        texts.append(_text(f"{part_location}.text", part.get("text")))
    return "".join(texts)


def _text(location: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{location} is {_kind(value)}, expected a string")
    return value


def _kind(value: object) -> str:
    return "missing or null" if value is None else _JSON_NAMES.get(type(value), f"a {type(value).__name__}")
