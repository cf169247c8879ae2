"""Warnings about usable records: text that is not read, and marks that are trained on as plain characters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from spin_components.data.formats import Conversation
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


class TextChecks:
    """Counts oddities in the text of records, by kind.

    Args:
        eos_tokens: text of the tokens that end an answer.
        specials: text of all special tokens.
    """

    def __init__(self, eos_tokens: Sequence[str], specials: Sequence[str]) -> None:
        tokens = sorted({*eos_tokens, *specials}, key=len, reverse=True)
        self._eos_tokens, self._marks = eos_tokens, re.compile("|".join(re.escape(token) for token in tokens))
        self._numbers: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, conversation: Conversation, place: str) -> None:
        """Check a record.

        Args:
            conversation: its turns.
            place: of the record, for messages.
        """
        for kind in _oddities(conversation, self._eos_tokens, self._marks):
            self._numbers[kind] += 1
            self._first.setdefault(kind, place)

    def counted(self) -> dict[str, Any]:
        """Return the counts and first places so far, as JSON, for `go_on`."""
        return {"numbers": dict(self._numbers), "first": dict(self._first)}

    def go_on(self, counted: dict[str, Any]) -> None:
        """Begin with the counts of other records."""
        self._numbers, self._first = Counter(counted["numbers"]), dict(counted["first"])

    def warnings(self) -> list[str]:
        """One sentence for each kind of oddity, with the number of records and the place of the first."""
        return [f"{number} records {kind}; the first is {self._first[kind]}" for kind, number in self._numbers.items()]


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
