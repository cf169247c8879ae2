"""Token ids of rendered prompts and of the answers after them, for many texts at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from spin_components.data.tokens import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ESCAPE = "\ufdd0"  # a Unicode noncharacter; escaped as well where a message contains it
_ESCAPED = re.compile(f"{ESCAPE}([0-9]+);")
_REACH = 48
"""Characters at the end of a prompt in which its last special token is looked for."""
_NUM_RESTS = 64
"""Number of different ends of prompts that are remembered."""


@dataclass(frozen=True, slots=True)
class _Encoded:
    """Ids of a text, with the positions of tokens in it where the text is one piece and the tokenizer tells them."""

    ids: list[int]
    positions: Any | None = None


class TextEncoder:
    """Encodes rendered texts; a fast tokenizer encodes them on all cores.

    What a fast tokenizer makes of the text after a special token depends on nothing before that. So a prompt's ids are
    those of prompt and answer together up to the prompt's last special token, and the ids of the rest of the prompt,
    mostly `assistant` and a line end, which are learned once: few prompts are encoded apart from their answers.

    Args:
        tokenizer: fast or not.
        specials: text of special tokens, which a record's text has in escaped form.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, specials: Sequence[str]) -> None:
        self._tokenizer, self._specials = tokenizer, list(specials)
        self._special = re.compile("|".join(re.escape(token) for token in sorted(specials, key=len, reverse=True)))
        self._rests: dict[tuple[str, str], list[int]] = {}  # by a prompt's last special token and the text after it

    def escape(self, content: str) -> str:
        """A record's text with the text of special tokens in a form that no template and no tokenizer reads as one."""
        return self._special.sub(lambda match: f"{ESCAPE}{self._specials.index(match.group())};", content)

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Ids of prompts and of their answers, each encoded together with its prompt unless that changes the prompt's.

        Args:
            pairs: texts of prompt and answer, with escaped special tokens.
        """
        joined = self._encode([prompt + answer for prompt, answer in pairs])
        prompts = self._prompts([prompt for prompt, _ in pairs], joined)
        is_apart = [each.ids[: len(prompt)] != prompt for each, prompt in zip(joined, prompts, strict=True)]
        apart = iter(self._encode([answer for (_, answer), alone in zip(pairs, is_apart, strict=True) if alone]))
        return [
            (prompt, next(apart).ids if alone else each.ids[len(prompt) :])
            for each, prompt, alone in zip(joined, prompts, is_apart, strict=True)
        ]

    def _prompts(self, prompts: Sequence[str], joined: Sequence[_Encoded]) -> list[list[int]]:
        """Ids of prompts, from the encodings of the texts that begin with them where that can be."""
        known = [self._known(prompt, each) for prompt, each in zip(prompts, joined, strict=True)]
        unknown = [prompt for prompt, ids in zip(prompts, known, strict=True) if ids is None]
        encoded = self._encode(unknown)
        for prompt, each in zip(unknown, encoded, strict=True):
            self._learn(prompt, each)
        rest = iter(encoded)
        return [next(rest).ids if ids is None else ids for ids in known]

    def _known(self, prompt: str, joined: _Encoded) -> list[int] | None:
        mark = self._last_special(prompt)
        rest = self._rests.get((mark.group(), prompt[mark.end() :])) if mark else None
        index = _index(self._tokenizer, mark, joined) if mark and rest is not None else None
        return None if index is None or rest is None else [*joined.ids[: index + 1], *rest]

    def _learn(self, prompt: str, encoded: _Encoded) -> None:
        mark = self._last_special(prompt) if len(self._rests) < _NUM_RESTS else None
        if mark and (index := _index(self._tokenizer, mark, encoded)) is not None:
            self._rests[mark.group(), prompt[mark.end() :]] = encoded.ids[index + 1 :]

    def _last_special(self, prompt: str) -> re.Match[str] | None:
        matches = list(self._special.finditer(prompt, max(0, len(prompt) - _REACH)))
        return matches[-1] if matches else None

    def _encode(self, texts: Sequence[str]) -> list[_Encoded]:
        """Encodings of rendered texts; escaped special tokens become ordinary tokens."""
        pieces = [list(self._pieces(text)) for text in texts]
        encoded = iter(self._encode_all([piece for each in pieces for piece, plain in each if not plain]))
        return [next(encoded) if len(each) == 1 else _Encoded(self._joined(each, encoded)) for each in pieces]

    def _joined(self, pieces: Sequence[tuple[str, bool]], encoded: Iterator[_Encoded]) -> list[int]:
        return [
            token_id
            for piece, plain in pieces
            for token_id in (encode(self._tokenizer, piece, plain=True) if plain else next(encoded).ids)
        ]

    def _encode_all(self, texts: Sequence[str]) -> list[_Encoded]:
        """Encodings of texts as they are, to which no token is added."""
        if not (given := [text for text in texts if text]):
            return [_Encoded([]) for _ in texts]
        options: dict[str, Any] = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        batch = self._tokenizer(given, add_special_tokens=False, split_special_tokens=False, **options)
        positions = cast(Any, batch).encodings or [None] * len(given)
        encoded = iter([_Encoded(*each) for each in zip(cast(Any, batch)["input_ids"], positions, strict=True)])
        return [next(encoded) if text else _Encoded([]) for text in texts]

    def _pieces(self, text: str) -> Iterator[tuple[str, bool]]:
        """Split rendered text into (text, False) for the template's own and (text, True) for what was escaped."""
        start = 0
        for match in _ESCAPED.finditer(text):
            yield text[start : match.start()], False
            yield self._specials[int(match.group(1))], True
            start = match.end()
        yield text[start:], False


def _index(tokenizer: PreTrainedTokenizerBase, mark: re.Match[str], encoded: _Encoded) -> int | None:
    """Index of a special token in the ids of a text; None where it is encoded otherwise, or its place is not known."""
    if encoded.positions is None:
        return None
    index = cast(int | None, encoded.positions.char_to_token(mark.start()))
    if index is None or encoded.positions.token_to_chars(index)[0] != mark.start():
        return None
    return index if encoded.ids[index] == tokenizer.convert_tokens_to_ids(mark.group()) else None
