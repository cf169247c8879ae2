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
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from spin_components.data.fidelity import Fidelity, check_question_is_written
from spin_components.data.formats import Conversation, Message
from spin_components.data.rendered import Rendered, Text
from spin_components.data.templates import ANSWER, QUESTION, ChatTemplate, unusable
from spin_components.data.text_encoder import ESCAPE, TextEncoder
from spin_components.data.thinking import Thinking, find_thinking
from spin_components.data.tokens import added_bos, added_tokens, encode, eos_tokens_of, special_tokens
from spin_components.data.turn_ends import own_template
from spin_components.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BRACKET = re.compile(r"[<>\[\]{}|｜]")


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
        template: the tokenizer's own by default.

    Attributes:
        thinking: the template's think block; None where it has none.

    Raises:
        ConfigError: the limits leave no tokens for a prompt or an answer.
        ModelError: `eos_ids` is empty, one of them is no token of the tokenizer, or the template fails or does not
            write the user's text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Sequence[int],
        *,
        max_length: int,
        max_prompt_length: int,
        long_prompts: str = "cut_start",
        template: ChatTemplate | None = None,
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
        self._template = template or own_template(tokenizer)
        eos_tokens = eos_tokens_of(tokenizer, self._eos_ids)
        if self._template.text is None:
            self._template.variables = {"bos": added_bos(tokenizer), "eos": eos_tokens[0]}
        self._header, self._lead, generation_prompt = self._probe()
        self.thinking: Thinking | None = find_thinking(self._template.source, generation_prompt, self._lead)
        self._fidelity = Fidelity(self._template)
        specials = [*eos_tokens, *special_tokens(tokenizer).values(), *self._markers().values()]
        self._encoder = TextEncoder(tokenizer, list(dict.fromkeys([*specials, ESCAPE])))
        self._eos = re.compile("|".join(re.escape(token) for token in sorted(eos_tokens, key=len, reverse=True)))

    def render(self, conversation: Conversation) -> Rendered:
        """Render a conversation to token ids within the limits.

        Raises:
            ValueError: the template rejects the conversation or leaves out a turn, prompt or answer have no tokens, the
                prompt is too long and to be refused, or the answer's text is encoded as an end-of-sequence token.
        """
        (rendered,) = self.encode([self.write(conversation)])
        if isinstance(rendered, ValueError):
            raise rendered
        return rendered

    def write(self, conversation: Conversation) -> Text:
        """Render a conversation to text, the first half of `render`.

        Raises:
            ValueError: the template rejects the conversation or leaves out a turn.
        """
        prompt = [Message(message.role, self._encoder.escape(message.content)) for message in conversation.prompt]
        answer = self._encoder.escape(conversation.answer)
        prompt_text = self._apply(prompt, add_generation_prompt=True) + self._header
        difference = self._fidelity.check(prompt, prompt_text)
        full_text = self._apply([*prompt, Message("assistant", answer)], add_generation_prompt=False)
        answer_text, eos_id = self._answer_text(prompt_text, full_text, answer)
        reasoning = self.thinking.case(conversation.answer) if self.thinking else None
        eos = self._eos.search(conversation.answer)
        return Text(prompt_text, answer_text, eos_id, eos.group() if eos else "", difference, reasoning)

    def encode(self, texts: Sequence[Text]) -> list[Rendered | ValueError]:
        """Encode the texts of conversations, the second half of `render`; the tokenizer encodes them on all cores.

        Returns: for each text its ids, or the error of `render`.
        """
        encoded = self._encoder.encode_pairs([(text.prompt, text.answer) for text in texts])
        return [self._finish(text, *ids) for text, ids in zip(texts, encoded, strict=True)]

    def _finish(self, text: Text, prompt_ids: list[int], answer_ids: list[int]) -> Rendered | ValueError:
        """Ids within the limits, with the end-of-sequence token, or why there are none."""
        if not prompt_ids or not answer_ids:
            empty = "answer" if prompt_ids else "prompt"
            return ValueError(f"the {empty} has no tokens, expected at least one; drop the record")
        if not set(self._eos_ids).isdisjoint(answer_ids):
            return ValueError(
                f"the answer contains the end-of-sequence token {text.eos_in_answer!r}, which this tokenizer "
                "cannot encode as plain text; expected it at the end only: remove it from the answer"
            )
        prompt_cut = max(0, len(prompt_ids) - self._max_prompt_length)
        if prompt_cut:
            if self._long_prompts == "refuse":
                return ValueError(
                    f"the prompt has {len(prompt_ids)} tokens, expected at most data.max_prompt_length = "
                    f"{self._max_prompt_length}; shorten it, raise the limit, or set data.long_prompts to 'cut_middle'"
                )
            prompt_ids = self._shortened(prompt_ids)
        limit = self._max_length - len(prompt_ids)
        actual_ids = [*answer_ids, text.eos_id]
        ended = len(actual_ids) <= limit
        return Rendered(prompt_ids, actual_ids[:limit], ended, prompt_cut, text.difference, text.reasoning)

    def _shortened(self, prompt_ids: list[int]) -> list[int]:
        """A prompt that is too long, cut to the limit."""
        limit = self._max_prompt_length
        head = (limit + 1) // 2 if self._long_prompts == "cut_middle" else 0
        return prompt_ids[:head] + prompt_ids[len(prompt_ids) - (limit - head) :]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text without special tokens; for display, as encoding it again may give other ids."""
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, text)

    def fingerprint(self) -> str:
        """SHA-256 of the template, EOS ids and limits, which with the tokenizer's vocabulary determine the ids."""
        template = self._template
        parameters: dict[str, Any] = {
            "template": template.source,
            "variables": template.variables,
            "eos_ids": self._eos_ids,
            "max_length": self._max_length,
            "max_prompt_length": self._max_prompt_length,
            **({"arguments": template.arguments} if template.arguments else {}),
            **({"clock": template.clock.isoformat()} if template.tells_time else {}),
        }
        if self._long_prompts != "cut_start":
            parameters["long_prompts"] = self._long_prompts
        return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()

    def _apply(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        return self._template.apply(messages, add_generation_prompt=add_generation_prompt)

    def _probe(self) -> tuple[str, str, str]:
        """Text between question and answer, learned by rendering an example: (header, lead, generation prompt).

        The header is that of the assistant's turn in a template that ignores `add_generation_prompt`; it belongs to the
        prompt. The lead belongs to the answer: in Llama 2's template, a space. At least one of them is empty.
        """
        try:
            check_question_is_written(self._template)
            prompt_text = self._apply([QUESTION], add_generation_prompt=True)
            full_text = self._apply([QUESTION, ANSWER], add_generation_prompt=False)
            ignored = prompt_text == self._apply([QUESTION], add_generation_prompt=False)
        except ValueError as error:
            raise unusable(error) from error
        generation_prompt = prompt_text.rpartition(QUESTION.content)[2]
        lead, probe, _ = full_text.removeprefix(prompt_text).partition(ANSWER.content)
        if not full_text.startswith(prompt_text) or not probe:
            return "", "", generation_prompt
        return (lead, "", generation_prompt) if ignored and lead.strip() else ("", lead, generation_prompt)

    def _markers(self) -> dict[int, str]:
        """Added tokens that the template writes around turns although they are not special.

        Think tags, which belong to answers, and words are none of them.
        """
        text = self._apply([QUESTION, ANSWER], add_generation_prompt=False)
        text += self._apply([QUESTION], add_generation_prompt=True)
        used = set(encode(self._tokenizer, text, plain=False))
        tags = (self.thinking.opens, self.thinking.closes) if self.thinking else ()
        added = added_tokens(self._tokenizer).items()
        marks = {token_id: token for token_id, token in added if _BRACKET.search(token) and token not in tags}
        return {token_id: token for token_id, token in marks.items() if token_id in used}

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
