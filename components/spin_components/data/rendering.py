"""Chat rendering of conversations to token ids, used for both generation and training so that their ids are the same.

A conversation is rendered to text twice by the tokenizer's chat template: the prompt with its generation prompt, and
the whole conversation. The text that follows the prompt in the second, up to and including the first end-of-sequence
token, is the answer.

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n     prompt_ids: the same for sampling and for training
    Hello<|im_end|>                                             actual_ids: without the template's last \\n

The text of a special token in a message (`<|im_end|>`, `</s>` in HTML) is escaped before the template is applied and
then encoded as plain characters, so that no message can end a turn or start another.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from jinja2 import TemplateError

from spin_components.data.formats import Conversation, Message
from spin_components.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PLAIN_TEMPLATE = (
    "{{ bos }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content + '\\n\\n' }}"
    "{% elif message.role == 'user' %}{{ 'User:\\n' + message.content + '\\n\\n' }}"
    "{% else %}{{ 'Assistant:\\n' + message.content + eos + '\\n\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)
"""Template for a tokenizer without one: `bos` where the tokenizer adds it by itself, `eos` after every answer."""

_ESCAPE = "\ufdd0"  # a Unicode noncharacter; escaped as well where a message contains it
_ESCAPED = re.compile(f"{_ESCAPE}([0-9]+);")
_PROBE = "Answer0"


@dataclass(frozen=True, slots=True)
class Rendered:
    """Token ids of a prompt and of the human answer to it.

    Attributes:
        prompt_ids: up to where the answer begins.
        actual_ids: the answer, with the end-of-sequence token as its last id and nowhere else, unless it was cut.
        actual_ended: whether the last id is the end-of-sequence token; False where the answer was cut.
        prompt_cut: number of ids dropped from the prompt.
    """

    prompt_ids: list[int]
    actual_ids: list[int]
    actual_ended: bool
    prompt_cut: int


class Renderer:
    """Renders conversations to token ids with one tokenizer, one template and one set of limits.

    Args:
        tokenizer: with or without a chat template.
        eos_ids: ids of the tokens that end an answer, the template's own first; see `find_eos_ids`.
        max_length: limit of prompt and answer together, in tokens; a longer answer is cut and has no end-of-sequence
            token.
        max_prompt_length: limit of the prompt, in tokens.
        long_prompts: what happens to a longer one: `cut_start` keeps its end, `cut_middle` as many of its first tokens
            (BOS, system turn) as of its last, `refuse` refuses the conversation.

    Raises:
        ConfigError: the limits leave no tokens for a prompt or an answer.
        ModelError: `eos_ids` is empty, one of them is no token of the tokenizer, or the template fails.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Sequence[int],
        *,
        max_length: int,
        max_prompt_length: int,
        long_prompts: str = "cut_start",
    ) -> None:
        if not 0 < max_prompt_length < max_length:
            raise ConfigError(
                f"max_prompt_length is {max_prompt_length} and max_length {max_length}, expected 0 < max_prompt_length "
                "< max_length; leave room for an answer"
            )
        self._tokenizer = tokenizer
        self._eos_ids = list(eos_ids)
        self._max_length, self._max_prompt_length = max_length, max_prompt_length
        self._long_prompts = long_prompts
        eos_tokens = _tokens(tokenizer, self._eos_ids)
        self._specials = list(dict.fromkeys([*eos_tokens, *_special_tokens(tokenizer).values(), _ESCAPE]))
        longest_first = sorted(self._specials, key=len, reverse=True)
        self._special = re.compile("|".join(re.escape(token) for token in longest_first))
        self._eos = re.compile("|".join(re.escape(token) for token in sorted(eos_tokens, key=len, reverse=True)))
        self._template = _chat_template(tokenizer)
        self._variables: dict[str, str] = {}
        if self._template is None:
            logger.warning("the tokenizer has no chat template; turns are labelled with 'User:' and 'Assistant:'")
            self._variables = {"bos": _added_bos(tokenizer), "eos": eos_tokens[0]}
        self._header, self._lead = self._probe_header_and_lead()

    def render(self, conversation: Conversation) -> Rendered:
        """Render a conversation to token ids within the limits.

        Raises:
            ValueError: the template rejects the conversation, prompt or answer have no tokens, the prompt is too long
                and to be refused, or the answer's text is encoded as an end-of-sequence token.
        """
        prompt = [Message(message.role, self._escape(message.content)) for message in conversation.prompt]
        answer = self._escape(conversation.answer)
        prompt_text = self._apply(prompt, add_generation_prompt=True) + self._header
        prompt_ids = self._encode(prompt_text)
        full_text = self._apply([*prompt, Message("assistant", answer)], add_generation_prompt=False)
        answer_text, eos_id = self._answer_text(prompt_text, full_text, answer)
        answer_ids = self._encode_after(prompt_text, prompt_ids, answer_text)
        if not prompt_ids or not answer_ids:
            empty = "answer" if prompt_ids else "prompt"
            raise ValueError(f"the {empty} has no tokens, expected at least one; drop the record")
        if not set(self._eos_ids).isdisjoint(answer_ids):
            eos = self._eos.search(conversation.answer)
            raise ValueError(
                f"the answer contains the end-of-sequence token {eos.group() if eos else ''!r}, which this tokenizer "
                "cannot encode as plain text; expected it at the end only: remove it from the answer"
            )
        prompt_cut = max(0, len(prompt_ids) - self._max_prompt_length)
        if prompt_cut:
            prompt_ids = self._shortened(prompt_ids)
        limit = self._max_length - len(prompt_ids)
        actual_ids = [*answer_ids, eos_id]
        return Rendered(prompt_ids, actual_ids[:limit], len(actual_ids) <= limit, prompt_cut)

    def _shortened(self, prompt_ids: list[int]) -> list[int]:
        """A prompt that is too long, cut to the limit."""
        limit = self._max_prompt_length
        if self._long_prompts == "refuse":
            raise ValueError(
                f"the prompt has {len(prompt_ids)} tokens, expected at most data.max_prompt_length = {limit}; shorten "
                "it, raise the limit, or set data.long_prompts to 'cut_middle'"
            )
        head = (limit + 1) // 2 if self._long_prompts == "cut_middle" else 0
        return prompt_ids[:head] + prompt_ids[len(prompt_ids) - (limit - head) :]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text without special tokens; for display, as encoding it again may give other ids."""
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, text)

    def fingerprint(self) -> str:
        """SHA-256 of the template, EOS ids and limits, which with the tokenizer's vocabulary determine the ids."""
        parameters: dict[str, Any] = {
            "template": PLAIN_TEMPLATE if self._template is None else self._template,
            "variables": self._variables,
            "eos_ids": self._eos_ids,
            "max_length": self._max_length,
            "max_prompt_length": self._max_prompt_length,
        }
        if self._long_prompts != "cut_start":
            parameters["long_prompts"] = self._long_prompts
        return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()

    def _apply(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        template = PLAIN_TEMPLATE if self._template is None else self._template
        return _apply(self._tokenizer, template, messages, add_generation_prompt, self._variables)

    def _probe_header_and_lead(self) -> tuple[str, str]:
        """Text between generation prompt and answer, learned by rendering an example: (header, lead).

        The header is that of the assistant's turn in a template that ignores `add_generation_prompt`; it belongs to the
        prompt. The lead belongs to the answer: in Llama 2's template, a space. At least one of them is empty.
        """
        question, answer = Message("user", "Question"), Message("assistant", _PROBE)
        try:
            prompt_text = self._apply([question], add_generation_prompt=True)
            full_text = self._apply([question, answer], add_generation_prompt=False)
            ignored = prompt_text == self._apply([question], add_generation_prompt=False)
        except ValueError as error:
            raise _unusable(error) from error
        lead, probe, _ = full_text.removeprefix(prompt_text).partition(_PROBE)
        if not full_text.startswith(prompt_text) or not probe:
            return "", ""
        return (lead, "") if ignored and lead.strip() else ("", lead)

    def _answer_text(self, prompt_text: str, full_text: str, answer: str) -> tuple[str, int]:
        """The answer's text as rendered, without its end-of-sequence token, and the id of that token.

        Where the template changes the answer (e.g. drops its reasoning) or the prompt before it, the original answer.
        """
        if full_text.startswith(prompt_text):
            rest = full_text[len(prompt_text) :]
            for content in (answer, answer.rstrip(), answer.lstrip(), answer.strip()):
                if rest.startswith(self._lead + content):
                    end = len(self._lead) + len(content)
                    eos = self._eos.search(rest, end)
                    if eos is None:
                        return rest[:end], self._eos_ids[0]
                    return rest[: eos.start()], cast(int, self._tokenizer.convert_tokens_to_ids(eos.group()))
        return answer, self._eos_ids[0]

    def _encode_after(self, prompt_text: str, prompt_ids: Sequence[int], text: str) -> list[int]:
        """Ids of text that follows a prompt: encoded together with the prompt, unless that changes the prompt's ids."""
        ids = self._encode(prompt_text + text)
        if ids[: len(prompt_ids)] == prompt_ids:
            return ids[len(prompt_ids) :]
        return self._encode(text)

    def _escape(self, content: str) -> str:
        return self._special.sub(lambda match: f"{_ESCAPE}{self._specials.index(match.group())};", content)

    def _encode(self, text: str) -> list[int]:
        """Ids of rendered text; escaped special tokens become ordinary tokens."""
        ids: list[int] = []
        for piece, plain in _pieces(text, lambda index: self._specials[index]):
            ids += _encode(self._tokenizer, piece, plain=plain)
        return ids


def find_eos_ids(tokenizer: PreTrainedTokenizerBase, generation_eos: int | Sequence[int] | None) -> list[int]:
    """Ids of the tokens that end an answer, without duplicates: the template's end of turn, then the model's ids.

    Args:
        tokenizer: with or without a chat template.
        generation_eos: `eos_token_id` of the model's generation config or config; the tokenizer's where it is None or
            empty.

    Raises:
        ModelError: the template fails on one question and its answer, or there is no such id.
    """
    configured = [generation_eos] if isinstance(generation_eos, int) else list(generation_eos or ())
    if not configured and tokenizer.eos_token_id is not None:
        configured = [cast(int, tokenizer.eos_token_id)]
    special = {*_special_tokens(tokenizer), *configured}
    end_of_turn = [token_id for token_id in _probe_suffix(tokenizer) if token_id in special][:1]
    eos_ids = list(dict.fromkeys([*end_of_turn, *configured]))
    if not eos_ids:
        raise ModelError(
            "no end-of-sequence token found: the chat template ends the assistant's turn with no special token, and "
            "neither the model's configuration nor the tokenizer names one; set eos_token_id in generation_config.json"
        )
    return eos_ids


def _probe_suffix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the text that the chat template writes after an answer."""
    template = _chat_template(tokenizer)
    if template is None:
        return []
    try:
        text = _apply(tokenizer, template, [Message("user", "Question"), Message("assistant", _PROBE)], False, {})
    except ValueError as error:
        raise _unusable(error) from error
    return _encode(tokenizer, text.rpartition(_PROBE)[2], plain=False) if _PROBE in text else []


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    variables: dict[str, str],
) -> str:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    options: dict[str, Any] = {"add_generation_prompt": add_generation_prompt, "tokenize": False, **variables}
    try:
        return cast(str, tokenizer.apply_chat_template(turns, chat_template=template, **options))
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(message.role for message in messages)
        raise ValueError(
            f"the chat template rejects turns of {roles} ({error}), expected turns it accepts; "
            "change the record's turns or the model's template"
        ) from error


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, *, plain: bool) -> list[int]:
    """Ids of text without added tokens; with `plain`, special tokens in it are encoded as ordinary characters."""
    if not text:
        return []
    encoding = tokenizer(text, add_special_tokens=False, split_special_tokens=plain, verbose=False)
    return cast(list[int], encoding["input_ids"])


def _pieces(text: str, unescaped: Callable[[int], str]) -> Iterator[tuple[str, bool]]:
    """Split rendered text into (text, False) for the template's own and (text, True) for what was escaped."""
    start = 0
    for match in _ESCAPED.finditer(text):
        yield text[start : match.start()], False
        yield unescaped(int(match.group(1))), True
        start = match.end()
    yield text[start:], False


def _chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's chat template, the default one of several; None where it has none."""
    return tokenizer.get_chat_template() if tokenizer.chat_template else None


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    special = {token_id: token.content for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return special | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def _tokens(tokenizer: PreTrainedTokenizerBase, eos_ids: Sequence[int]) -> list[str]:
    tokens = [tokenizer.convert_ids_to_tokens(token_id) if token_id >= 0 else None for token_id in eos_ids]
    if not tokens or not all(tokens):
        raise ModelError(
            f"the end-of-sequence ids are {list(eos_ids)}, the tokenizer's tokens for them {tokens}, expected at least "
            "one id and a token for each; correct eos_token_id in the model's generation_config.json"
        )
    return cast(list[str], tokens)


def _added_bos(tokenizer: PreTrainedTokenizerBase) -> str:
    """The BOS token if the tokenizer adds it to a text by itself, else an empty string."""
    bos_id = tokenizer.bos_token_id
    return cast(str, tokenizer.bos_token) if bos_id is not None and bos_id in tokenizer("a")["input_ids"][:1] else ""


def _unusable(error: ValueError) -> ModelError:
    return ModelError(f"the model's chat template cannot be used on one question and its answer: {error}")
