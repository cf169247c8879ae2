"""A conversation as text and as token ids."""

from __future__ import annotations

from dataclasses import dataclass

from spin_components.data.fidelity import Difference
from spin_components.data.thinking import Case


@dataclass(frozen=True, slots=True)
class Rendered:
    """Token ids of a prompt and of the human answer to it.

    Attributes:
        prompt_ids: up to where the answer begins.
        actual_ids: the answer, with the end-of-sequence token as its last id and nowhere else, unless it was cut.
        actual_ended: whether the last id is the end-of-sequence token; False where the answer was cut.
        prompt_cut: number of ids dropped from the prompt.
        difference: how the prompt's text differs from the record's turns; see `Fidelity`.
        reasoning: how the answer relates to the template's think block; see `Thinking`.
    """

    prompt_ids: list[int]
    actual_ids: list[int]
    actual_ended: bool
    prompt_cut: int
    difference: Difference | None = None
    reasoning: Case | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A conversation as text.

    Attributes:
        prompt: up to where the answer begins, with escaped special tokens.
        answer: without its end-of-sequence token.
        eos_id: of that token.
        eos_in_answer: the first end-of-sequence token that the record's answer has in its text; empty for none.
        difference, reasoning: those of `Rendered`.
    """

    prompt: str
    answer: str
    eos_id: int
    eos_in_answer: str
    difference: Difference | None
    reasoning: Case | None
