"""Source formats: parsing of a data set's records, in the common formats, to conversations.

    messages                           chat: a list of {role, content}
    real (generated is ignored)        the authors' (uclaml/SPIN): lists of {role, content}
    conversations (system, mask)       NeMo SFT chat and ShareGPT: a list of {from, value}
    prompt + response or completion    strings, or TRL's lists of {role, content}
    instruction + output or response   Alpaca (input, system, history) and Dolly (context)
    chosen (rejected is ignored)       preference data: the whole conversation, or the answer to `prompt`

The first format of this list whose keys are all present is used; a key with the value null counts as absent.
A key that changes what the turns say is used or refused, see `KEYS`; of any other that holds text, the name is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spin_components.data.turns import (
    Conversation,
    Fields,
    Message,
    Turn,
    has_text,
    is_empty,
    kind,
    messages,
    text,
    texts,
)

__all__ = ["FORMATS", "FORMS", "KEYS", "READ", "REFUSED", "Conversation", "Format", "Message", "parse_record"]

FORMS = (
    "messages; real (with generated); conversations; prompt + response; prompt + completion; "
    "instruction (with input) + output; instruction (with context) + response; chosen (with prompt, rejected)"
)

KEYS = {
    "system": "the system turn, before the others",
    "system_prompt": "as `system`",
    "history": "earlier turns, a list of [question, answer], before the question",
    "input": "follows the instruction or the prompt, after a blank line",
    "context": "as `input`",
    "mask": "NeMo's name of the user",
}
"""What becomes of a key that a format uses beside those that it is recognised by."""

REFUSED = {
    **dict.fromkeys(("system", "system_prompt"), "a system turn, where the turns have another one"),
    "history": "earlier turns, which have no place before a list of turns: put them into the list",
    **dict.fromkeys(("input", "context"), "text with no place in a list of turns: put it into a turn"),
    **dict.fromkeys(("tools", "functions"), "tools to call, and only turns of text can be trained on; drop the record"),
    "documents": "documents for the template, which are not rendered: put them into a turn",
    **dict.fromkeys(
        ("reasoning", "reasoning_content", "thinking"),
        "reasoning beside the answer: write it into the answer as the model should write it (<think>…</think>), "
        "or remove the key",
    ),
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), "no text: only text can be trained on"),
}
"""Keys that are refused in a format that does not use them, with what they hold."""


@dataclass(frozen=True, slots=True)
class Format:
    """One form of a record.

    Attributes:
        keys: those that it is recognised by.
        parse: its turns.
        used: further keys that are read.
        left: other answers of the record, which are not read.
    """

    keys: tuple[str, ...]
    parse: Callable[[Fields], list[Turn]]
    used: tuple[str, ...] = ("system", "system_prompt")
    left: tuple[str, ...] = ()


def parse_record(record: object) -> Conversation:
    """Parse a decoded record.

    Raises:
        ValueError: no format has its keys, or the content is invalid; the message says what was found and expected.
    """
    if not isinstance(record, dict):
        raise ValueError(f"the record is {kind(record)}, expected an object with the keys of one of: {FORMS}")
    fields = {key: value for key, value in record.items() if value is not None}
    for each in FORMATS:
        if all(key in fields for key in each.keys):
            return _conversation(each, fields)
    keys_found = ", ".join(sorted(repr(key) for key in fields)) or "none"
    raise ValueError(f"no known format has the keys found ({keys_found}); expected the keys of one of: {FORMS}")


def _turns_of(key: str) -> Callable[[Fields], list[Turn]]:
    def parse(fields: Fields) -> list[Turn]:
        return messages(key, fields[key], fields.get("mask") if key == "conversations" else None)

    return parse


def _question(key: str, answer_key: str) -> Callable[[Fields], list[Turn]]:
    """A question with what belongs to it, and its answer; each a string or a list of messages."""

    def parse(fields: Fields) -> list[Turn]:
        question = fields[key]
        if isinstance(question, str):
            added = [text(name, fields.get(name, "")) for name in ("input", "context")]
            question = "\n\n".join([question, *(each for each in added if each.strip())])
            turns = [*_history(fields), Turn(key, Message("user", question))]
        else:
            turns = messages(key, question)
            _refuse(("history", "input", "context"), fields, turns)
        return [*turns, *_answer(answer_key, fields[answer_key])]

    return parse


def _answer(key: str, value: object) -> list[Turn]:
    return [Turn(key, Message("assistant", value))] if isinstance(value, str) else messages(key, value)


def _instruction(answer_key: str) -> Callable[[Fields], list[Turn]]:
    parse = _question("instruction", answer_key)

    def strings(fields: Fields) -> list[Turn]:
        return parse({**fields, **{key: text(key, fields[key]) for key in ("instruction", answer_key)}})

    return strings


def _chosen(fields: Fields) -> list[Turn]:
    """The preferred answer, alone or at the end of the whole conversation."""
    chosen = fields["chosen"]
    if isinstance(chosen, str) and "prompt" not in fields:
        raise ValueError("chosen is a string and there is no prompt, expected a list of turns, or a prompt beside it")
    answer = _answer("chosen", chosen)
    is_whole = any(turn.message.role == "user" for turn in answer)
    if is_whole or "prompt" not in fields:
        _refuse(("history", "input", "context"), fields, answer)
        return answer
    return _question("prompt", "chosen")(fields)


def _history(fields: Fields) -> list[Turn]:
    """Earlier questions and answers, in LLaMA-Factory's form."""
    value = fields.get("history", [])
    if is_empty(value):
        return []
    if not isinstance(value, list):
        raise ValueError(f"history is {kind(value)}, expected a list of [question, answer]")
    if all(isinstance(each, dict) for each in value):
        return messages("history", value)
    turns = []
    for index, pair in enumerate(value):
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"history[{index}] is {kind(pair)}, expected a list of two strings, [question, answer]")
        for place, (role, each) in enumerate(zip(("user", "assistant"), pair, strict=True)):
            location = f"history[{index}][{place}]"
            turns.append(Turn(location, Message(role, text(location, each))))
    return turns


_TEXT_USED = ("system", "system_prompt", "history", "input", "context")

FORMATS = (
    Format(("messages",), _turns_of("messages"), left=("chosen", "rejected")),
    Format(("real",), _turns_of("real"), left=("generated",)),
    Format(("conversations",), _turns_of("conversations"), used=("system", "system_prompt", "mask")),
    Format(("prompt", "response"), _question("prompt", "response"), used=_TEXT_USED),
    Format(("prompt", "completion"), _question("prompt", "completion"), used=_TEXT_USED),
    Format(("instruction", "output"), _instruction("output"), used=_TEXT_USED),
    Format(("instruction", "response"), _instruction("response"), used=_TEXT_USED),
    Format(("chosen",), _chosen, used=_TEXT_USED, left=("rejected",)),
)
"""Every format, in the order in which they are tried."""

READ = frozenset(
    (*(key for each in FORMATS for key in (*each.keys, *each.used)), *KEYS, *REFUSED, "label", "weight"),
)
"""All keys of a record that are read; others matter only for a warning where they hold text."""


def _conversation(form: Format, fields: Fields) -> Conversation:
    _refuse_judged(form, fields)
    turns = form.parse(fields)
    if turns and turns[0].message.role == "system" and not turns[0].message.content.strip():
        turns = turns[1:]
    turns = [*_system(fields, turns), *turns]
    _refuse([key for key in REFUSED if key not in form.used], fields, turns)
    prompt, answer = _checked(turns)
    read = {*form.keys, *form.used, *form.left}
    unread = [key for key, value in fields.items() if key not in read and has_text(value)]
    unread = [key for key in unread if not _is_said(fields[key], turns)]
    unread += [key for turn in turns for key in turn.unread]
    return Conversation(prompt, answer, tuple(dict.fromkeys(unread)))


def _system(fields: Fields, turns: Sequence[Turn]) -> list[Turn]:
    """The record's system text as a turn, unless the turns begin with it."""
    for key in ("system", "system_prompt"):
        content = text(key, fields.get(key, ""))
        if not content.strip():
            continue
        first = turns[0].message if turns else None
        if first is None or first.role != "system":
            return [Turn(key, Message("system", content))]
        if first.content.strip() != content.strip():
            raise ValueError(f"{key} holds {REFUSED[key]}, {turns[0].location}; keep one of them")
    return []


def _refuse(keys: Sequence[str], fields: Fields, turns: Sequence[Turn]) -> None:
    """Refuse keys with content that no turn contains."""
    for key in keys:
        if key in fields and not is_empty(fields[key]) and not _is_said(fields[key], turns):
            raise ValueError(f"{key} = {json.dumps(fields[key], default=str)[:60]} holds {REFUSED[key]}")


def _is_said(value: object, turns: Sequence[Turn]) -> bool:
    """Whether the turns repeat all of a value's text, and it has some."""
    said = "\n".join(turn.message.content for turn in turns)
    found = [each.strip() in said for each in texts(value)]
    return bool(found) and all(found)


def _refuse_judged(form: Format, fields: Fields) -> None:
    """Refuse a record whose answer is marked as not to be trained on, or with a lower weight."""
    if "prompt" in form.keys and fields.get("label") is False:  # unpaired preferences, as TRL's KTO reads them
        raise ValueError("label is false: the answer was judged a bad one; drop the record")
    weight = fields.get("weight", 1)
    if isinstance(weight, (int, float)) and weight != 1:
        raise ValueError(f"weight is {weight}, and SPIN weighs all records the same; drop the record or the key")


def _checked(turns: Sequence[Turn]) -> tuple[tuple[Message, ...], str]:
    """Prompt and answer, where roles take turns and no turn is blank."""
    expected = "user"
    for index, turn in enumerate(turns):
        location, message = turn.location, turn.message
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
    if not turns or turns[-1].message.role != "assistant":
        problem = f"{turns[-1].location} has role {turns[-1].message.role!r}" if turns else "there is no turn"
        raise ValueError(
            f"{problem} at the end, expected 'assistant'; SPIN needs a human answer to play against: "
            "drop the record or add the answer"
        )
    return tuple(turn.message for turn in turns[:-1]), turns[-1].message.content
