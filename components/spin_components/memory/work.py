"""Inputs of a memory estimate: settings, machine, and lengths of the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from spin_components.algorithm.batching import LOGITS_BYTES, logit_chunk
from spin_components.settings.settings import Settings


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of the longest pair, in tokens.

    Attributes:
        prompt: length of the prompt.
        actual: length of the human answer.
        generated: length of the generated answer, or of each of two.
        num_generated: number of generated answers: 2 where iteration 0's are trained on besides.
    """

    prompt: int
    actual: int
    generated: int
    num_generated: int = 1

    @property
    def answers(self) -> int:
        """Tokens of all answers."""
        return self.actual + self.num_generated * self.generated

    @property
    def pair(self) -> int:
        """Tokens of the packed pair: the prompt once, and all answers."""
        return self.prompt + self.answers

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longer answer."""
        return self.prompt + max(self.actual, self.generated)


def longest_allowed(settings: Settings) -> Lengths:
    """The longest pair that the settings allow: a prompt of one token, and all answers of maximum length."""
    max_length = settings.data.max_length
    generated = min(settings.generation.max_new_tokens, max_length - 1)
    return Lengths(1, max_length - 1, generated, num_generated(settings))


def num_generated(settings: Settings) -> int:
    """Number of generated answers of a pair, in the iteration that has the most."""
    return settings.objective.answers(settings.spin.max_iterations - 1) - 1


def longest_of(settings: Settings, prompts: Iterable[tuple[int, int]]) -> Lengths:
    """The longest pair that the data can give.

    Args:
        settings: of the run.
        prompts: lengths of each prompt and its human answer, in tokens; not empty.
    """
    max_length, max_new_tokens = settings.data.max_length, settings.generation.max_new_tokens
    num = num_generated(settings)
    pairs = (Lengths(prompt, actual, min(max_new_tokens, max_length - prompt), num) for prompt, actual in prompts)
    return max(pairs, key=lambda lengths: lengths.pair)


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine or pod that a step's processes run on.

    Attributes:
        device: `cuda` or `cpu`, as `hardware.device` resolves.
        is_bf16: whether `training.precision` resolves to bf16.
        device_bytes: memory of one GPU; 0 if not known.
        host_bytes: by step, memory that its processes share, of the machine or the pod; empty if not known.
        free_bytes: memory of this machine that is free now; 0 if not known.
        is_pod: whether each step has a pod of its own, with the GPUs that it requests.
    """

    device: Literal["cuda", "cpu"]
    is_bf16: bool
    device_bytes: int = 0
    host_bytes: Mapping[str, int] = field(default_factory=dict)
    free_bytes: int = 0
    is_pod: bool = False


@dataclass(frozen=True, slots=True)
class Workload:
    """All inputs of an estimate besides the model's shape."""

    settings: Settings
    machine: Machine
    lengths: Lengths
    logit_bytes: int = LOGITS_BYTES
    """Size of the logits that are computed at a time."""

    def logits_at_once(self, positions: int, vocabulary: int) -> int:
        """Number of positions, at most `positions`, whose logits are computed at a time."""
        return min(positions, logit_chunk(vocabulary, self.logit_bytes))

    @property
    def is_packed(self) -> bool:
        """Whether batches are packed, as `model.batch_layout.resolve_packing` decides."""
        return self.settings.training.packing != "off"

    def padded(self) -> Workload:
        """The same with padded batches, for a model that does not pack."""
        training = self.settings.training.model_copy(update={"packing": "off"})
        return replace(self, settings=self.settings.model_copy(update={"training": training}))

    @property
    def num_answers(self) -> int:
        """Answers that are computed of each pair."""
        return 1 + self.lengths.num_generated if self.lengths.generated else 1

    @property
    def pairs_at_once(self) -> float:
        """Size of a micro-batch, in pairs of the longest lengths; a fraction where a budget of tokens limits it."""
        training, lengths = self.settings.training, self.lengths
        if not training.micro_batch_tokens:
            return training.micro_batch_size
        tokens = lengths.pair if self.is_packed else self.num_answers * lengths.longest
        return max(1.0, min(training.micro_batch_size, training.micro_batch_tokens / tokens))

    @property
    def on_gpu(self) -> bool:
        """Whether the machine's device is a GPU."""
        return self.machine.device == "cuda"
