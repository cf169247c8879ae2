"""Chat templates: the Jinja source that a run renders with, its arguments, and the clock for its dates."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from spin_components.data.cpu_limit import cpu_limit
from spin_components.data.formats import Message
from spin_components.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_TEMPLATE = (
    "{{ bos }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content + '\\n\\n' }}"
    "{% elif message.role == 'user' %}{{ 'User:\\n' + message.content + '\\n\\n' }}"
    "{% else %}{{ 'Assistant:\\n' + message.content + eos + '\\n\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)
"""Template for a tokenizer without one: `bos` where the tokenizer adds it by itself, `eos` after every answer."""

QUESTION, ANSWER = Message("user", "Question"), Message("assistant", "Answer0")
"""The turns that a template is tried on."""

LIMIT_S = 20.0
"""Seconds of processor time in which a template must have rendered one conversation."""

_PROCESSOR_FILES = ("chat_template.json", "processor_config.json", "preprocessor_config.json")


class ChatTemplate:
    """A chat template with its arguments and its clock.

    Args:
        tokenizer: renders it, and gives it the names of its special tokens.
        text: Jinja source; None for `PLAIN_TEMPLATE`.
        arguments: variables beyond the turns, `data.chat_template_kwargs`.
        clock: date and time that `strftime_now` formats; the current time by default.

    Attributes:
        tells_time: whether the clock has been read.

    Raises:
        ConfigError: the template reads no variable of an argument's name.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text: str | None,
        *,
        arguments: Mapping[str, Any] | None = None,
        clock: datetime | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.text, self.arguments = text, dict(arguments or {})
        self.clock = clock or datetime.now().replace(microsecond=0)
        self.tells_time = False
        self.variables: dict[str, str] = {}
        for name in self.arguments:
            if text is None or not re.search(rf"\b{re.escape(name)}\b", text):
                raise ConfigError(
                    f"data.chat_template_kwargs.{name}: the chat template reads no variable of this name, expected one "
                    "that it reads; correct the name or leave it out"
                )

    @property
    def source(self) -> str:
        """The Jinja source."""
        return PLAIN_TEMPLATE if self.text is None else self.text

    def apply(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """Render turns to text.

        Raises:
            ValueError: the template rejects the turns.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._apply(turns, add_generation_prompt)
        except Exception as error:  # a template's expressions may raise anything
            roles = ", ".join(message.role for message in messages[:8]) + (", …" if len(messages) > 8 else "")
            reason = str(error)[:300] or type(error).__name__
            raise ValueError(
                f"the chat template rejects turns of {roles} ({reason}), expected turns it accepts; change the "
                "record's turns, or name another template in data.chat_template or its arguments in "
                "data.chat_template_kwargs"
            ) from error

    def writes_parts(self) -> bool:
        """Whether the template writes a user's text given as a list of parts."""
        turns = [{"role": "user", "content": [{"type": "text", "text": QUESTION.content}]}]
        try:
            return QUESTION.content in self._apply(turns, add_generation_prompt=True)
        except Exception:  # a template's expressions may raise anything
            return False

    def _apply(self, turns: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        options: dict[str, Any] = {"add_generation_prompt": add_generation_prompt, "tokenize": False}
        options |= {"strftime_now": self._strftime_now, **self.arguments, **self.variables}
        with cpu_limit(LIMIT_S):
            text = self._tokenizer.apply_chat_template(cast(Any, turns), chat_template=self.source, **options)
        return cast(str, text)

    def _strftime_now(self, form: str) -> str:
        self.tells_time = True
        return self.clock.strftime(form)


def model_template(tokenizer: PreTrainedTokenizerBase, folder: Path | None, name: str = "") -> tuple[str | None, str]:
    """A model's chat template: (its Jinja source, the file of a processor that it was taken from or "").

    Args:
        tokenizer: of the model.
        folder: of the model, whose processor's template is taken where the tokenizer has none; None to look nowhere.
        name: of one of several templates; "" for the default one. The source is None where the model has no template.

    Raises:
        ConfigError: there is no template of that name, or there are several and none of them is the default.
    """
    templates, file = tokenizer.chat_template or None, ""
    if templates is None and folder is not None:
        templates, file = _processor_template(folder)
    named = templates if isinstance(templates, dict) else {"default": templates} if templates else {}
    if (name or "default") in named:
        return named[name or "default"], file
    if not named and not name:
        return None, ""
    have = f"it has {', '.join(sorted(named))}" if named else "it has none"
    raise ConfigError(
        f"data.chat_template = {name!r}: expected the name of one of the model's chat templates, {have}; give one of "
        "them, or the path of a template's file"
    )


def _processor_template(folder: Path) -> tuple[Any, str]:
    """The template in one of a processor's files, with the file's name; (None, "") where there is none."""
    for name in _PROCESSOR_FILES:
        try:
            value = json.loads((folder / name).read_bytes())
        except (OSError, ValueError):
            continue
        template = value.get("chat_template") if isinstance(value, dict) else None
        if isinstance(template, list):  # the form of several templates in older files
            named = (each for each in template if isinstance(each, dict) and {"name", "template"} <= each.keys())
            template = {each["name"]: each["template"] for each in named}
        if template and isinstance(template, str | dict):
            return template, name
    return None, ""


def unusable(error: ValueError) -> ModelError:
    """The error of a template that fails on one question and its answer."""
    return ModelError(f"the model's chat template cannot be used on one question and its answer: {error}")
