"""The next token of each row: transformers' warpers, and draws that depend on a prompt's own random numbers alone.

R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spin_components.generate.engine import Sampling

Warper = Callable[[Tensor, Tensor], Tensor]


class Chooser:
    """Chooses as the settings say: greedily, or by sampling from the warped distribution."""

    def __init__(self, sampling: Sampling) -> None:
        from transformers.generation.logits_process import (
            RepetitionPenaltyLogitsProcessor,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        settings = sampling.settings
        self._eos_ids, self._least = sampling.eos_ids, settings.min_new_tokens
        self._greedy = sampling.temperature == 0
        self.reads_history = settings.repetition_penalty != 1
        self._penalty: Warper | None = None
        if self.reads_history:
            self._penalty = RepetitionPenaltyLogitsProcessor(settings.repetition_penalty)
        self._warpers: list[Warper] = []
        if not self._greedy:
            if sampling.temperature != 1:
                self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
            if settings.top_k:
                self._warpers.append(TopKLogitsWarper(settings.top_k))
            if settings.top_p < 1:
                self._warpers.append(TopPLogitsWarper(settings.top_p))

    def choose(
        self, logits: Tensor, uniforms: Sequence[float], num_answered: Sequence[int], histories: Sequence[Sequence[int]]
    ) -> tuple[list[int], list[float]]:
        """A token a row, and its log-probability in nats under the model itself, before any warping.

        Args:
            logits: (R, V) float32; left as they are.
            uniforms: a random number in [0, 1) for each row.
            num_answered: tokens that each row's answer has already.
            histories: prompt and answer so far; looked at only where `reads_history`.
        """
        scores = self._warp(logits, num_answered, histories)
        if self._greedy:
            chosen = scores.argmax(dim=-1)
        else:
            chosen = draw(scores, torch.tensor(uniforms, dtype=torch.float64, device=logits.device))
        logprobs = logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(dim=-1)
        return chosen.tolist(), logprobs.tolist()

    def _warp(self, logits: Tensor, num_answered: Sequence[int], histories: Sequence[Sequence[int]]) -> Tensor:
        scores = logits
        ids = torch.empty(0)  # only the penalty looks at tokens
        if self._penalty is not None:
            longest = max(len(history) for history in histories)
            # filled up with a token that is in it anyway: the penalty counts each once
            filled = [[*history, *[history[0]] * (longest - len(history))] for history in histories]
            ids = torch.tensor(filled, device=logits.device)
            scores = self._penalty(ids, scores)
        short = [row for row, num in enumerate(num_answered) if num < self._least]
        if short:
            scores = scores.clone()
            scores[torch.tensor(short)[:, None], torch.tensor(self._eos_ids)] = float("-inf")
        for warper in self._warpers:
            scores = warper(ids, scores)
        return scores


def draw(scores: Tensor, uniforms: Tensor) -> Tensor:
    """Sample from softmax(scores) by inverting its distribution function, in float64; (R, V) and (R,) to (R,).

    One random number a row: `multinomial` makes one for each of V tokens, on a CPU half the time of a small model.
    """
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp_()
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    below = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, below, right=True)[:, 0]  # the first that exceeds: never one of weight 0
