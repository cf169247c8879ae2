"""Reasoning between think tags: what a chat template makes of it, and what answers with or without it teach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)

Case = Literal["inside", "reopened", "after", "without"]
"""How an answer relates to the template's think block:

    inside    the prompt opens a block that the answer does not close
    reopened  the prompt opens a block and the answer opens it again
    after     the prompt opens and closes a block, and the answer has one of its own
    without   the template leaves the block to the model, and the answer has none
"""


@dataclass(frozen=True, slots=True)
class Thinking:
    """The think block of a chat template.

    Attributes:
        opens, closes: its tags.
        state: of the block where an answer begins: `open`, `closed`, or `free` where the prompt says nothing.
        is_written: whether the template writes an empty block before an answer that has none.
        has_switch: whether the template reads `enable_thinking`.
    """

    opens: str
    closes: str
    state: Literal["open", "closed", "free"]
    is_written: bool
    has_switch: bool

    def case(self, answer: str) -> Case | None:
        """What is remarkable about an answer; None for nothing."""
        begins, ends = answer.lstrip().startswith(self.opens), self.closes in answer
        if self.state == "open":
            return "reopened" if begins else None if ends else "inside"
        if self.state == "closed":
            return "after" if begins or ends else None
        return None if ends else "without"

    def lesson(self, case: Case) -> str:
        """What answers of a case teach, and what to do about it; continues "N human answers …"."""
        match case:
            case "inside":
                switch = "set data.chat_template_kwargs.enable_thinking = false, or " if self.has_switch else ""
                return (
                    f"do not close the {self.opens} block that the chat template opens before every answer: SPIN will "
                    f"teach the model to answer inside it, without reasoning. For plain answers {switch}name another "
                    "template in data.chat_template"
                )
            case "reopened":
                return (
                    f"begin with {self.opens}, which the chat template writes before every answer: SPIN will teach the "
                    "model to write it twice. Remove it from the answers, or name another template in "
                    "data.chat_template"
                )
            case "after":
                switch = "; set data.chat_template_kwargs.enable_thinking = true" if self.has_switch else ""
                return (
                    f"have reasoning of their own after the empty {self.opens} block that the chat template writes "
                    f"before every answer: SPIN will teach the model to think after it{switch}"
                )
            case "without":
                block = f" after the empty {self.opens} block that it writes" if self.is_written else ""
                return (
                    f"have no reasoning, for which the chat template has a {self.opens} block: they are trained as "
                    f"they are{block}, and SPIN will teach the model to answer without reasoning"
                )


def find_thinking(template: str, generation_prompt: str, lead: str) -> Thinking | None:
    """The think block of a template; None where it has none.

    Args:
        template: its source.
        generation_prompt: what it writes between a question and the answer that is to be generated.
        lead: what it writes before an answer that is given.
    """
    written = f"{generation_prompt}{lead}"
    for opens, closes in _TAGS:
        if opens not in template and opens not in written and closes not in template:
            continue
        state: Literal["open", "closed", "free"] = "free"
        if opens in generation_prompt:
            state = "closed" if generation_prompt.rfind(closes) > generation_prompt.rfind(opens) else "open"
        return Thinking(opens, closes, state, opens in lead, "enable_thinking" in template)
    return None


def without_reasoning(text: str) -> str | None:
    """The text after its last closing think tag; None where it has no such tag."""
    ends = [text.rfind(closes) + len(closes) for _, closes in _TAGS if closes in text]
    return text[max(ends) :] if ends else None
