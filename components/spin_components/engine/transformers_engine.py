"""Sampling with a `transformers` model and continuous batching: a row whose answer ends takes the next prompt."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spin_components.engine.engine import Answer, Sampling
from spin_components.engine.fallback import FallbackGenerator
from spin_components.engine.sampling import TokenSampler
from spin_components.engine.slots import Slots, enable_slot_attention
from spin_components.model.compute import Compute
from spin_components.model.folder import load_tokenizer
from spin_components.model.frozen import FrozenLoader
from spin_components.model.loading import load_model
from spin_components.settings.run import ModelSettings

logger = logging.getLogger(__name__)

_PROMPT_TOKENS_A_STEP = 2048
_YIELD_INTERVAL_S = 1.0


@dataclass(slots=True)
class _Row:
    """A sequence in progress.

    Attributes:
        index: of the prompt among those of the call.
        limit: largest number of new tokens.
        random: the prompt's own random number generator.
        token_ids: sampled so far.
        logprob: sum of their log-probabilities, in nats.
    """

    index: int
    prompt_ids: list[int]
    limit: int
    random: np.random.Generator
    token_ids: list[int] = field(default_factory=list)
    logprob: float = 0.0

    @property
    def num_cached(self) -> int:
        """Number of tokens in the KV cache: all but the newest."""
        return len(self.prompt_ids) + len(self.token_ids) - 1


class TransformersEngine:
    """Engine on `transformers`, for any device that torch supports.

    The same seed gives the same answers for any batch size and any division of the prompts into calls, up to rounding:
    each prompt has its own random numbers, seeded by its number.
    """

    name = "transformers"

    def __init__(
        self,
        folder: Path,
        model: ModelSettings,
        sampling: Sampling,
        compute: Compute,
        loader: FrozenLoader | None = None,
    ) -> None:
        self._sampling, self._compute = sampling, compute
        loaded = loader.load(folder, model) if loader else load_model(folder, model, device=compute.device)
        self._model: Any = loaded.eval()
        self._tokenizer = load_tokenizer(folder, model)
        self._fallback: FallbackGenerator | None = None
        if reason := enable_slot_attention(self._model, compute.device):
            logger.warning("%s is sampled by transformers.generate(): %s", type(self._model).__name__, reason)
            self._fallback = FallbackGenerator(self._model, self._tokenizer, sampling, compute)

    def generate(
        self, prompts: Sequence[list[int]], max_new_tokens: Sequence[int], *, numbers: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Answer]]:
        if self._fallback is not None:
            yield from self._fallback.generate(prompts, max_new_tokens, numbers=numbers)
            return
        numbers = numbers or range(len(prompts))
        # longest prompts first: running out of memory shows at once, and the last rows to finish are short
        order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
        waiting = deque(
            _Row(index, prompts[index], max_new_tokens[index], self._random(numbers[index])) for index in order
        )
        num_rows = min(len(prompts), self._sampling.settings.batch_size)
        slots, sampler = Slots(num_rows, self._compute.device), TokenSampler(self._sampling)
        rows: list[_Row] = []
        while waiting or rows:
            finished: list[tuple[int, Answer]] = []
            # the thread's torch modes must not stay on while the caller handles an answer, and entering autocast casts
            # all weights; so answers are yielded in batches, once a second
            deadline = time.monotonic() + _YIELD_INTERVAL_S
            with torch.inference_mode(), self._compute.autocast():
                while (waiting or rows) and not (finished and time.monotonic() > deadline):
                    entering = _entering(waiting, num_rows - len(rows))
                    logits = slots.predict(
                        self._model,
                        [row.token_ids[-1] for row in rows],
                        [row.num_cached for row in rows],
                        [row.prompt_ids for row in entering],
                    )
                    rows += entering
                    self._extend(rows, logits, sampler)
                    finished += self._remove_finished(rows, slots)
            yield from finished

    def _random(self, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self._sampling.seed, number]))

    def _extend(self, rows: list[_Row], logits: torch.Tensor, sampler: TokenSampler) -> None:
        """Sample the next token of every row."""
        histories = [row.prompt_ids + row.token_ids for row in rows] if sampler.reads_history else []
        tokens, logprobs = sampler.sample(
            logits, [row.random.random() for row in rows], [len(row.token_ids) for row in rows], histories
        )
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            row.token_ids.append(token)
            row.logprob += logprob

    def _remove_finished(self, rows: list[_Row], slots: Slots) -> Iterator[tuple[int, Answer]]:
        """Remove finished rows; the last row moves into the gap, so that active rows stay contiguous from row 0."""
        for number in reversed(range(len(rows))):
            reason = self._finish_reason(rows[number])
            if reason is None:
                continue
            row, last = rows[number], rows.pop()
            if last is not row:
                rows[number] = last
                slots.move(len(rows), number, last.num_cached)
            yield row.index, Answer(row.token_ids, reason, row.logprob)

    def _finish_reason(self, row: _Row) -> str | None:
        """Why a row's answer is finished; None while it is not."""
        if row.token_ids[-1] in self._sampling.eos_ids:
            return "stop"
        stop = self._sampling.settings.stop
        if stop and any(text in self._tokenizer.decode(row.token_ids) for text in stop):
            return "stop_string"
        return "length" if len(row.token_ids) >= row.limit else None

    def close(self) -> None:
        del self._model


def _entering(waiting: deque[_Row], num_free: int) -> list[_Row]:
    """Take the next prompts for the free rows, at most `_PROMPT_TOKENS_A_STEP` tokens of them but at least one."""
    entering: list[_Row] = []
    num_tokens = 0
    while waiting and len(entering) < num_free:
        num_tokens += len(waiting[0].prompt_ids)
        if entering and num_tokens > _PROMPT_TOKENS_A_STEP:
            break
        entering.append(waiting.popleft())
    return entering
