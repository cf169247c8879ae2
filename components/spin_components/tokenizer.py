"""Tokenizers in Hugging Face layout, loaded without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spin_components.errors import ModelError
from spin_components.settings import ModelSettings


def load_tokenizer(folder: Path, settings: ModelSettings) -> Any:
    """Load the tokenizer of a model folder.

    Raises:
        ModelError: transformers cannot load it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"the tokenizer in {folder} cannot be loaded: {error}") from error
