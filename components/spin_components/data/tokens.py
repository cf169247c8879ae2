"""Tokens of a tokenizer by kind, and the ids of text without added tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from spin_components.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, plain: bool) -> list[int]:
    """Ids of text, to which no token is added; with `plain`, a token's text is encoded as ordinary characters."""
    if not text:
        return []
    encoding = tokenizer(text, add_special_tokens=False, split_special_tokens=plain, verbose=False)
    ids = cast(list[int], encoding["input_ids"])
    if plain and len(text) > 1 and not added_tokens(tokenizer).keys().isdisjoint(ids):
        # the tokenizer splits special tokens only: an added one is not recognised without its first character
        return encode(tokenizer, text[:1], plain=True) + encode(tokenizer, text[1:], plain=True)
    return ids


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Special tokens by id."""
    special = {token_id: token.content for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return special | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Added tokens that are not special, but for those of white space alone; by id."""
    added = tokenizer.added_tokens_decoder.items()
    return {token_id: token.content for token_id, token in added if not token.special and token.content.strip()}


def eos_tokens_of(tokenizer: PreTrainedTokenizerBase, eos_ids: Sequence[int]) -> list[str]:
    """Tokens of the ids that end an answer.

    Raises:
        ModelError: there is no id, or one without a token.
    """
    tokens = [tokenizer.convert_ids_to_tokens(token_id) if token_id >= 0 else None for token_id in eos_ids]
    if not tokens or not all(tokens):
        raise ModelError(
            f"the end-of-sequence ids are {list(eos_ids)}, the tokenizer's tokens for them {tokens}, expected at least "
            "one id and a token for each; correct eos_token_id in the model's generation_config.json"
        )
    return cast(list[str], tokens)


def added_bos(tokenizer: PreTrainedTokenizerBase) -> str:
    """The BOS token if the tokenizer adds it to a text by itself, else an empty string."""
    bos_id = tokenizer.bos_token_id
    return cast(str, tokenizer.bos_token) if bos_id is not None and bos_id in tokenizer("a")["input_ids"][:1] else ""
