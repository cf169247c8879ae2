"""Warnings about usable records: text that is not read, and marks that are trained on as plain characters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from spin_components.data.formats import Conversation
from spin_components.data.records import RecordSet
from spin_components.store.sources import Source

_THINK = re.compile(r"</?think>")


def message_of_left_out(source: Source, what: str) -> str:
    """The warning that files of other splits are not read."""
    shown = ", ".join(source.left_out[:3]) + (" …" if len(source.left_out) > 3 else "")
    number = len(source.left_out)
    return (
        f"{what} = {source.uri}: data files of other splits there are not read, {number} of them ({shown}); "
        f"'{source.uri}#SPLIT' names a split, for data.train or data.validation"
    )


def text_warnings(record_sets: Sequence[RecordSet], eos_tokens: Sequence[str], specials: Sequence[str]) -> list[str]:
    """One sentence for each kind of oddity, with the number of records and the place of the first.

    Args:
        record_sets: the records of all files.
        eos_tokens: text of the tokens that end an answer.
        specials: text of all special tokens.
    """
    numbers: Counter[str] = Counter()
    first: dict[str, str] = {}
    tokens = sorted({*eos_tokens, *specials}, key=len, reverse=True)
    marks = re.compile("|".join(re.escape(token) for token in tokens))
    for record_set in record_sets:
        unit = "row" if record_set.source.endswith((".parquet", ".arrow")) else "line"
        for record in record_set.records:
            for kind in _oddities(record.conversation, eos_tokens, marks):
                numbers[kind] += 1
                first.setdefault(kind, f"{record_set.source}, {unit} {record.line}")
    return [f"{number} records {kind}; the first is {first[kind]}" for kind, number in numbers.items()]


def _oddities(conversation: Conversation, eos_tokens: Sequence[str], marks: re.Pattern[str]) -> Iterator[str]:
    for key in conversation.unread:
        yield f"have text under {key!r} that is in no turn and is not read: move it into a turn, or remove the key"
    answer = conversation.answer
    ending = next((token for token in eos_tokens if answer.rstrip().endswith(token)), None)
    if ending:
        yield (
            f"have an answer that ends in the text {ending!r}, which is trained on as plain characters before the "
            "end-of-sequence token itself: remove it"
        )
    elif any(marks.search(text) for text in (answer, *(message.content for message in conversation.prompt))):
        yield (
            "have the text of a special token in a turn, which is encoded as plain characters: where it is a rendered "
            "template, give the turns without it"
        )
    opened = 0
    for mark in _THINK.findall(answer):
        opened += 1 if mark == "<think>" else -1
        if not 0 <= opened <= 1:
            break
    if opened:
        yield "have an answer with half a think block, <think> without </think> or the reverse: complete or remove it"
