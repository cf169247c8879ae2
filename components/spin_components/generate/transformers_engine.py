"""Generation with a `transformers` model: rows that are each taken by the next prompt when their answer ends."""

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

from spin_components.device import Compute
from spin_components.generate.choosing import Chooser
from spin_components.generate.engine import Answer, Sampling
from spin_components.generate.plain import PlainBatches
from spin_components.generate.slots import Slots, give_slot_attention
from spin_components.modeling import load_model
from spin_components.settings import ModelSettings
from spin_components.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)

_PROMPT_TOKENS_A_STEP = 2048
_YIELD_INTERVAL_S = 1.0


@dataclass(slots=True)
class _Row:
    """A prompt being answered."""

    place: int
    prompt_ids: list[int]
    limit: int
    random: np.random.Generator
    token_ids: list[int] = field(default_factory=list)
    logprob: float = 0.0

    @property
    def num_held(self) -> int:
        """Tokens whose keys and values are kept: all but the newest."""
        return len(self.prompt_ids) + len(self.token_ids) - 1


class TransformersEngine:
    """Runs wherever torch does.

    The same seed gives the same answers, to rounding whatever the batch size: each prompt has random numbers of its
    own, by its number among all that the engine was ever given.
    """

    name = "transformers"

    def __init__(self, folder: Path, model: ModelSettings, sampling: Sampling, compute: Compute) -> None:
        self._sampling, self._compute = sampling, compute
        self._model: Any = load_model(folder, model, device=compute.device).eval()
        self._tokenizer = load_tokenizer(folder, model)
        self._num_given = 0
        self._plain: PlainBatches | None = None
        if reason := give_slot_attention(self._model, compute.device):
            logger.warning("%s is batched by transformers: %s", type(self._model).__name__, reason)
            self._plain = PlainBatches(self._model, self._tokenizer, sampling, compute)

    def generate(self, prompts: Sequence[list[int]], max_new_tokens: Sequence[int]) -> Iterator[tuple[int, Answer]]:
        if self._plain is not None:
            yield from self._plain.generate(prompts, max_new_tokens)
            return
        # the longest first: what cannot fit shows at once, and the last rows to end are short ones
        order = sorted(range(len(prompts)), key=lambda place: (-len(prompts[place]), place))
        waiting = deque(
            _Row(place, prompts[place], max_new_tokens[place], self._random(self._num_given + place)) for place in order
        )
        self._num_given += len(prompts)
        num_rows = min(len(prompts), self._sampling.settings.batch_size)
        slots, chooser = Slots(num_rows, self._compute.device), Chooser(self._sampling)
        rows: list[_Row] = []
        while waiting or rows:
            finished: list[tuple[int, Answer]] = []
            # modes of this thread must not leak to whoever takes an answer, and entering autocast costs a cast of all
            # weights; so answers are handed over together, once a second
            until = time.monotonic() + _YIELD_INTERVAL_S
            with torch.inference_mode(), self._compute.autocast():
                while (waiting or rows) and not (finished and time.monotonic() > until):
                    entering = _entering(waiting, num_rows - len(rows))
                    logits = slots.predict(
                        self._model,
                        [row.token_ids[-1] for row in rows],
                        [row.num_held for row in rows],
                        [row.prompt_ids for row in entering],
                    )
                    rows += entering
                    self._extend(rows, logits, chooser)
                    finished += self._leave(rows, slots)
            yield from finished

    def _random(self, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self._sampling.seed, number]))

    def _extend(self, rows: list[_Row], logits: torch.Tensor, chooser: Chooser) -> None:
        """Give every row its next token."""
        histories = [row.prompt_ids + row.token_ids for row in rows] if chooser.reads_history else []
        tokens, logprobs = chooser.choose(
            logits, [row.random.random() for row in rows], [len(row.token_ids) for row in rows], histories
        )
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            row.token_ids.append(token)
            row.logprob += logprob

    def _leave(self, rows: list[_Row], slots: Slots) -> Iterator[tuple[int, Answer]]:
        """Take out rows that have ended; the last takes the place of each, so that rows stay the first ones."""
        for number in reversed(range(len(rows))):
            reason = self._ending(rows[number])
            if reason is None:
                continue
            row, last = rows[number], rows.pop()
            if last is not row:
                rows[number] = last
                slots.move(len(rows), number, last.num_held)
            yield row.place, Answer(row.token_ids, reason, row.logprob)

    def _ending(self, row: _Row) -> str | None:
        if row.token_ids[-1] in self._sampling.eos_ids:
            return "stop"
        stop = self._sampling.settings.stop
        if stop and any(text in self._tokenizer.decode(row.token_ids) for text in stop):
            return "stop_string"
        return "length" if len(row.token_ids) >= row.limit else None

    def close(self) -> None:
        del self._model


def _entering(waiting: deque[_Row], num_free: int) -> list[_Row]:
    """The next prompts: as many as there are rows for, but few enough to bound a step's memory; at least one."""
    entering: list[_Row] = []
    num_tokens = 0
    while waiting and len(entering) < num_free:
        num_tokens += len(waiting[0].prompt_ids)
        if entering and num_tokens > _PROMPT_TOKENS_A_STEP:
            break
        entering.append(waiting.popleft())
    return entering
