"""The generations table: a few pairs as text, for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spin_components.data.shards import Pair
from spin_components.settings import ModelSettings
from spin_components.tokenizer import load_tokenizer

SAMPLES_A_SHARD = 8
_SHOWN, _SHOWN_CHARACTERS = 4, 1000

Sample = dict[str, str | int]


def decode_samples(pairs: Sequence[Pair], folder: Path, model: ModelSettings) -> list[Sample]:
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


def shortened(samples: Sequence[Sample]) -> list[Sample]:
    """Fewer samples with less text, for an event; of a prompt the end stays, of answers the beginning."""
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
