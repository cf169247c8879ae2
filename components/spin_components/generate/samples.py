"""A few pairs decoded to text, for the report and the live view."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spin_components.data.shards import Pair
from spin_components.model.folder import load_tokenizer
from spin_components.settings.run import ModelSettings

SAMPLES_A_SHARD = 8
_SHOWN, _SHOWN_CHARACTERS = 4, 1000

DecodedPair = dict[str, str | int]


def decode_samples(pairs: Sequence[Pair], folder: Path, model: ModelSettings) -> list[DecodedPair]:
    """Decode prompts, human answers and generated answers."""
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


def shortened(samples: Sequence[DecodedPair]) -> list[DecodedPair]:
    """At most four samples for an event, of each prompt the last and of each answer the first 1000 characters."""
    return [
        sample
        | {"prompt": _end(str(sample["prompt"]))}
        | {name: _beginning(str(sample[name])) for name in ("actual", "generated")}
        for sample in samples[:_SHOWN]
    ]


def _beginning(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def _end(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else "…" + text[1 - _SHOWN_CHARACTERS :]
