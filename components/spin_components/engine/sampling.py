"""Sampling of the next token of each row, with transformers' logits warpers and a random number for each prompt.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spin_components.engine.engine import Sampling

Warper = Callable[[Tensor, Tensor], Tensor]


class TokenSampler:
    """Selects next tokens: greedily at temperature 0, else by sampling from the warped distribution.

    Attributes:
        reads_history: whether `sample` needs the rows' tokens, for the repetition penalty.
    """

    def __init__(self, sampling: Sampling) -> None:
        from transformers.generation.logits_process import (
            RepetitionPenaltyLogitsProcessor,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        settings = sampling.settings
        self._eos_ids, self._min_new_tokens = sampling.eos_ids, settings.min_new_tokens
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

    def sample(
        self, logits: Tensor, uniforms: Sequence[float], num_answered: Sequence[int], histories: Sequence[Sequence[int]]
    ) -> tuple[list[int], list[float]]:
        """Sample a token for each row.

        Args:
            logits: (R, V) float32; not modified.
            uniforms: a random number in [0, 1) for each row.
            num_answered: number of tokens in each row's answer so far.
            histories: each row's prompt and answer so far; used only if `reads_history`.

        Returns: R token ids, and their log-probabilities in nats under the model, before any warping.
        """
        scores = self._warp(logits, num_answered, histories)
        if self._greedy:
            tokens = scores.argmax(dim=-1)
        else:
            tokens = sample_softmax(scores, torch.tensor(uniforms, dtype=torch.float64, device=logits.device))
        logprobs = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(dim=-1)
        return tokens.tolist(), logprobs.tolist()

    def _warp(self, logits: Tensor, num_answered: Sequence[int], histories: Sequence[Sequence[int]]) -> Tensor:
        scores = logits
        ids = torch.empty(0)  # only the repetition penalty reads token ids
        if self._penalty is not None:
            longest = max(len(history) for history in histories)
            # pad with a token of the row itself: the penalty applies once to each distinct token
            padded = [[*history, *[history[0]] * (longest - len(history))] for history in histories]
            ids = torch.tensor(padded, device=logits.device)
            scores = self._penalty(ids, scores)
        short = [row for row, num in enumerate(num_answered) if num < self._min_new_tokens]
        if short:
            scores = scores.clone()
            scores[torch.tensor(short)[:, None], torch.tensor(self._eos_ids)] = float("-inf")
        for warper in self._warpers:
            scores = warper(ids, scores)
        return scores


def sample_softmax(scores: Tensor, uniforms: Tensor) -> Tensor:
    """Sample from softmax(scores) by inverting the cumulative distribution, in float64.

    It needs one random number for each row; `multinomial` draws V of them, on a CPU half the time of a small model.

    Args:
        scores: (R, V), -inf for excluded tokens.
        uniforms: (R,) float64, in [0, 1).

    Returns: (R,) int64.
    """
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp_()
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    thresholds = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    # the first entry above the threshold, which never has weight 0
    return torch.searchsorted(cumulative, thresholds, right=True)[:, 0]
