"""Comparison of rendered prompts with their records: turns that a chat template leaves out or alters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from spin_components.data.formats import Message
from spin_components.data.templates import QUESTION, ChatTemplate
from spin_components.data.thinking import without_reasoning
from spin_components.errors import ModelError

Difference = Literal["reasoning", "altered"]
DIFFERENCES: dict[str, str] = {
    "reasoning": "the chat template leaves out the reasoning in earlier turns of the assistant",
    "altered": "the chat template alters the text of turns; to keep it, name another template in data.chat_template",
}
"""The words of a warning for each kind of difference."""

_WORST_FIRST: tuple[Difference, ...] = ("altered", "reasoning")


class Fidelity:
    """Compares what a chat template writes with the turns that it was given."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._dropped: dict[tuple[str, ...], tuple[int, ...]] = {}

    def check(self, prompt: Sequence[Message], text: str) -> Difference | None:
        """Compare a rendered prompt with its turns.

        Args:
            prompt: turns as they were given to the template.
            text: what it made of them.

        Returns: how they differ, where a turn is not written as it is; None where all are.

        Raises:
            ValueError: a turn is left out.
        """
        roles = tuple(message.role for message in prompt)
        if roles not in self._dropped:
            self._dropped[roles] = self._find_dropped(roles)
        if dropped := self._dropped[roles]:
            index = dropped[0]
            kind = roles[index] if roles[index] == "system" else f"{roles[index]}'s"
            raise ValueError(
                f"the chat template leaves out the {kind} turn (turn {index + 1} of {len(roles) + 1}), expected every "
                "turn in the prompt; name a template that writes it in data.chat_template, or move its text into a "
                "turn that is written"
            )
        found = [_difference(message, text) for message in prompt]
        return next((kind for kind in _WORST_FIRST if kind in found), None)

    def _find_dropped(self, roles: Sequence[str]) -> tuple[int, ...]:
        """Indices of the turns that are left out whatever their text, found with turns of unique text."""
        marks = [Message(role, f"Turn{index}turn") for index, role in enumerate(roles)]
        try:
            text = self._template.apply(marks, add_generation_prompt=True)
        except ValueError:
            return ()  # it takes the record's turns by their text
        return tuple(index for index, mark in enumerate(marks) if mark.content not in text)


def _difference(message: Message, text: str) -> Difference | None:
    content = message.content.strip()
    if content in text:
        return None
    answer = without_reasoning(content) if message.role == "assistant" else None
    if answer is not None and answer.strip() in text:
        return "reasoning"
    return None if "".join(content.split()) in "".join(text.split()) else "altered"


def check_question_is_written(template: ChatTemplate) -> None:
    """Check that a template writes a user's text, and the same each time.

    Raises:
        ModelError: it does not.
        ValueError: the template rejects the question.
    """
    prompts = [template.apply([QUESTION], add_generation_prompt=True) for _ in range(2)]
    if prompts[0] != prompts[1]:
        raise ModelError(
            "the model's chat template writes the same question differently each time, so that no run could be "
            "repeated; name another template in data.chat_template"
        )
    if QUESTION.content in prompts[0]:
        return
    reads = "as a list of parts, expected as text" if template.writes_parts() else "not at all, expected as it is"
    raise ModelError(
        "the model's chat template does not write the user's text into the prompt: it reads a turn's content "
        f"{reads}; name a template for text in data.chat_template"
    )
