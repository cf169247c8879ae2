"""Micro-batches of at most so many tokens (`training.micro_batch_tokens`), of any number of pairs up to a limit.

Only how a rank divides its pairs changes with the budget: a global batch has the same pairs with the same weights, so
its loss and gradients are the same sums in another order. All ranks make as many micro-batches, which DeepSpeed's
reductions need; a rank with fewer repeats the batch's shortest pair at weight 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin_components.algorithm.batching import Lengths, MicroBatch, deal, filled

Ints = Sequence[int] | NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class PairLengths:
    """Tokens of pairs, by index; each (N,).

    Attributes:
        once: of the prompt, once, and of all answers.
        prompt: of the prompt.
        longest: of the longest answer.
        num_answers: number of answers that are computed, no tokens.
    """

    once: Ints
    prompt: Ints
    longest: Ints
    num_answers: Ints

    @property
    def in_rows(self) -> NDArray[np.int64]:
        """Tokens of a row for each answer, with a prompt each, (N,); see `Pair.num_tokens`."""
        once, prompt, num_answers = (np.asarray(each, np.int64) for each in (self.once, self.prompt, self.num_answers))
        return once + (num_answers - 1) * prompt

    def packed(self, pairs: Sequence[int]) -> int:
        """Tokens of a packed batch: each prompt once."""
        return sum(int(self.once[i]) for i in pairs)

    def padded(self, pairs: Sequence[int]) -> int:
        """Tokens of a padded batch with a row for each answer: all have the longest prompt and answer."""
        width = max(int(self.prompt[i]) for i in pairs) + max(int(self.longest[i]) for i in pairs)
        return sum(int(self.num_answers[i]) for i in pairs) * width


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of a micro-batch.

    Attributes:
        pairs: the most of them.
        tokens: the most of them, unless a single pair has more.
        count: number of tokens of a batch of pairs.
    """

    pairs: int
    tokens: int
    count: Callable[[Sequence[int]], int]


def budgeted_micro_batches(
    batch: Sequence[int], lengths: Lengths, budget: Budget, *, rank: int, ranks: int, is_balanced: bool
) -> list[MicroBatch]:
    """One rank's micro-batches of a global batch.

    Args:
        batch: indices of pairs.
        lengths: tokens of each pair, by index; by them pairs are ordered and, balanced, divided among ranks.
        budget: of a micro-batch.
        rank: index of the rank, below `ranks`.
        ranks: number of training processes.
        is_balanced: whether pairs are divided among ranks, as in `batching.balanced_micro_batches`, and then into
            micro-batches; otherwise micro-batches are divided among ranks, and do not depend on their number.

    Returns: as many micro-batches on every rank, those with the shortest pairs first; ranks have about as many tokens.
    """
    num = -(-len(batch) // ranks) * ranks if is_balanced else len(batch)
    pairs, weights = filled(batch, lengths, num)
    filling = MicroBatch((pairs[0],), (0.0,))

    def divide(places: Sequence[int]) -> list[MicroBatch]:
        parts = _divided(places, pairs, budget)
        return [MicroBatch(tuple(pairs[i] for i in part), tuple(weights[i] for i in part)) for part in parts]

    if is_balanced:
        costs = np.array([int(lengths[pair]) for pair in pairs])
        shares = [divide(share.tolist()) for share in deal(costs, ranks)]
        most = max(map(len, shares))
        return [filling] * (most - len(shares[rank])) + shares[rank]
    micros = divide(range(len(pairs)))
    micros = [filling] * (-len(micros) % ranks) + micros
    mine = deal(np.array([budget.count(micro.pairs) for micro in micros]), ranks)[rank]
    return [micros[i] for i in mine]


def _divided(places: Sequence[int], pairs: Sequence[int], budget: Budget) -> list[list[int]]:
    """Places of pairs in parts within the budget, each as large as it may be, in their order."""
    parts: list[list[int]] = []
    for place in places:
        if parts and len(parts[-1]) < budget.pairs:
            longer = [*parts[-1], place]
            if budget.count([pairs[i] for i in longer]) <= budget.tokens:
                parts[-1] = longer
                continue
        parts.append([place])
    return parts
