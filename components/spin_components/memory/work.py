"""What a step is asked to do, as numbers that its memory depends on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from spin_components.algorithm.chunks import LOGITS_BYTES, logit_chunk
from spin_components.settings import Settings


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of the longest pair.

    Attributes:
        prompt: of it.
        actual: the human's answer.
        generated: the other one.
    """

    prompt: int
    actual: int
    generated: int

    @property
    def pair(self) -> int:
        """The prompt once, and both answers."""
        return self.prompt + self.actual + self.generated

    @property
    def longest(self) -> int:
        """The prompt with the longer answer."""
        return self.prompt + max(self.actual, self.generated)


def longest_allowed(settings: Settings) -> Lengths:
    """The longest pair that the settings allow: hardly a prompt, and answers that fill the rest."""
    most = settings.data.max_length
    return Lengths(1, most - 1, min(settings.generation.max_new_tokens, most - 1))


def longest_of(settings: Settings, prompts: Iterable[tuple[int, int]]) -> Lengths:
    """The longest pair that can come of the data.

    Args:
        settings: of the run.
        prompts: tokens of each prompt and of its human answer; at least one.
    """
    most, limit = settings.data.max_length, settings.generation.max_new_tokens
    pairs = (Lengths(prompt, actual, min(limit, most - prompt)) for prompt, actual in prompts)
    return max(pairs, key=lambda lengths: lengths.pair)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a process of a step runs.

    Attributes:
        device: `cuda` or `cpu`; what `hardware.device = "auto"` comes to.
        is_bf16: whether `training.precision` comes to bf16 there.
        device_bytes: memory of one GPU; 0 if not known.
        host_bytes: by step, memory that its processes share: this machine's, or their pod's; empty if not known.
        free_bytes: of this machine's memory, what nothing else takes now; 0 if not known.
    """

    device: Literal["cuda", "cpu"]
    is_bf16: bool
    device_bytes: int = 0
    host_bytes: Mapping[str, int] = field(default_factory=dict)
    free_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Work:
    """Everything an estimate needs beside the model's shape."""

    settings: Settings
    machine: Machine
    lengths: Lengths
    logit_bytes: int = LOGITS_BYTES
    """Of the logits that are computed at a time."""

    def logits_at_once(self, positions: int, vocabulary: int) -> int:
        """Of so many positions whose logits are asked for, those that are computed at a time."""
        return min(positions, logit_chunk(vocabulary, self.logit_bytes))

    @property
    def is_packed(self) -> bool:
        """As `scoring.resolve_packing`."""
        packing = self.settings.training.packing
        return packing == "on" or (packing == "auto" and self.machine.device == "cpu")

    @property
    def on_gpu(self) -> bool:
        return self.machine.device == "cuda"
