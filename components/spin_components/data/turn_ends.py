"""The tokens that end an answer, from a model's configuration and its chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from spin_components.data.templates import ANSWER, QUESTION, ChatTemplate, model_template, unusable
from spin_components.data.tokens import added_tokens, encode, special_tokens
from spin_components.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def own_template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """The tokenizer's chat template, the default one of several."""
    return ChatTemplate(tokenizer, model_template(tokenizer, None)[0])


def find_eos_ids(
    tokenizer: PreTrainedTokenizerBase,
    generation_eos: int | Sequence[int] | None,
    template: ChatTemplate | None = None,
) -> list[int]:
    """Ids of the tokens that end an answer, without duplicates: the template's end of turn, then the model's ids.

    The end of turn is the first special token after an answer or, where there is none, the first added one.

    Args:
        tokenizer: with or without a chat template.
        generation_eos: `eos_token_id` of the model's generation config or config; the tokenizer's where it is None or
            empty.
        template: the tokenizer's own by default.

    Raises:
        ModelError: the template fails on one question and its answer, or there is no such id.
    """
    configured = [generation_eos] if isinstance(generation_eos, int) else list(generation_eos or ())
    if not configured and tokenizer.eos_token_id is not None:
        configured = [cast(int, tokenizer.eos_token_id)]
    special = {*special_tokens(tokenizer), *configured}
    suffix = _probe_suffix(tokenizer, template or own_template(tokenizer))
    end_of_turn = [token_id for token_id in suffix if token_id in special][:1]
    if not end_of_turn:
        end_of_turn = [token_id for token_id in suffix if token_id in added_tokens(tokenizer)][:1]
    eos_ids = list(dict.fromkeys([*end_of_turn, *configured]))
    if not eos_ids:
        raise ModelError(
            "no end-of-sequence token found: the chat template ends the assistant's turn with no special token, and "
            "neither the model's configuration nor the tokenizer names one; set eos_token_id in generation_config.json"
        )
    return eos_ids


def _probe_suffix(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> list[int]:
    """Ids of the text that the chat template writes after an answer."""
    if template.text is None:
        return []
    try:
        text = template.apply([QUESTION, ANSWER], add_generation_prompt=False)
    except ValueError as error:
        raise unusable(error) from error
    return encode(tokenizer, text.rpartition(ANSWER.content)[2], plain=False) if ANSWER.content in text else []
