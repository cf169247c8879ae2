"""The generations table: a few pairs as text, for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spin_components.data.shards import Pair
from spin_components.settings import ModelSettings
from spin_components.tokenizer import load_tokenizer

SAMPLES_A_SHARD = 8


def decode_samples(pairs: Sequence[Pair], folder: Path, model: ModelSettings) -> list[dict[str, str | int]]:
    """Prompt, human answer and generated answer as text, with the finish reason."""
    tokenizer = load_tokenizer(folder, model)
    return [
        {
            "index": pair.index,
            "prompt": tokenizer.decode(pair.prompt_ids),
            "actual": tokenizer.decode(pair.actual_ids),
            "generated": tokenizer.decode(pair.generated_ids),
            "finish_reason": pair.finish_reason,
        }
        for pair in pairs
    ]
