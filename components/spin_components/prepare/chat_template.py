"""The chat template of a run: read from the model or from a file, and copied into the run."""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Any

from spin_components.data.templates import ChatTemplate, model_template
from spin_components.runtime.step import Step
from spin_components.settings.run import DataSettings
from spin_components.store import layout
from spin_components.store.sources import Sources

UNSET = {"data.chat_template": "", "data.chat_template_kwargs": {}, "data.chat_template_date": ""}
"""Settings that are inputs of a run only where they are set: older runs do not have them."""


def read_template(sources: Sources, data: DataSettings) -> str | None:
    """The text of the file that `data.chat_template` names; None where it names none.

    Raises:
        ConfigError: it is not a text file.
        StorageAccessError, StorageError: storage refuses, or does not answer.
    """
    return sources.read_text(data.chat_template_file, what="data.chat_template") if data.chat_template_file else None


def template_inputs(text: str | None) -> dict[str, str]:
    """The digest of a template's file as an input of the run."""
    return {} if text is None else {"data.chat_template (content)": hashlib.sha256(text.encode()).hexdigest()}


def keep_template(step: Step, text: str) -> None:
    """Copy a template's file into the run."""
    step.keep(
        layout.CHAT_TEMPLATE,
        template_inputs(text),
        lambda path: _write(path, text),
        manifest=layout.inputs_manifest("chat_template"),
        what="chat template",
    )


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode())


def choose_template(tokenizer: Any, base: Path, data: DataSettings, file: str | None) -> tuple[ChatTemplate, list[str]]:
    """The template that the settings ask for, and warnings about it.

    Args:
        tokenizer: of the base model.
        base: its folder.
        data: settings.
        file: text of the file that they name; None for none.

    Raises:
        ConfigError: the model has no template of that name, or the template does not read an argument.
    """
    warnings = []
    text, processor = (file, "") if file is not None else model_template(tokenizer, base, data.chat_template)
    if text is None:
        warnings.append(
            "the model has no chat template: turns are labelled 'User:' and 'Assistant:'; for a chat model that lost "
            "its template, name one in data.chat_template"
        )
    elif processor:
        warnings.append(f"the tokenizer has no chat template; its processor's is taken, from {processor}")
    clock = datetime.fromisoformat(data.chat_template_date) if data.chat_template_date else None
    return ChatTemplate(tokenizer, text, arguments=data.chat_template_kwargs, clock=clock), warnings
