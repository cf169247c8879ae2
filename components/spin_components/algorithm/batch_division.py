"""How training divides a global batch: among its ranks, and into micro-batches.

Scoring computes the pairs in the same micro-batches, so that in bf16 both round alike, and an iteration's first loss is
what equal models give whatever the slope of the objective.
"""

from __future__ import annotations

from collections.abc import Sequence

from spin_components.algorithm.batching import MicroBatch, balanced_micro_batches, micro_batches
from spin_components.algorithm.token_budget import Budget, Ints, PairLengths, budgeted_micro_batches
from spin_components.settings.training import TrainingSettings


class BatchDivision:
    """Divides global batches.

    Packed, ranks get as many tokens each, a prompt counted once: which pairs meet depends on the number of ranks.
    Padded, a micro-batch costs what its longest pair does, so pairs of one length stay together, and no micro-batch
    depends on the number of ranks.

    Args:
        lengths: of the pairs, by index.
        training: sizes of batches.
        ranks: number of training processes.
        is_packed: whether the model packs.
        num_tokens: of the pairs, (N,), by which they are ordered unless ranks get as many tokens each; None for
            `PairLengths.in_rows`.
    """

    def __init__(
        self,
        lengths: PairLengths,
        training: TrainingSettings,
        ranks: int,
        *,
        is_packed: bool,
        num_tokens: Ints | None = None,
    ) -> None:
        self._training, self._ranks = training, ranks
        self._is_balanced = is_packed and ranks > 1
        ordered_by = lengths.in_rows if num_tokens is None else num_tokens
        self._lengths = lengths.once if self._is_balanced else ordered_by
        count = lengths.packed if is_packed else lengths.padded
        self._budget = Budget(training.micro_batch_size, training.micro_batch_tokens, count)

    def of_rank(self, batch: Sequence[int], rank: int) -> list[MicroBatch]:
        """One rank's micro-batches of a global batch."""
        return self._divide(batch, rank, self._ranks)

    def of_all_ranks(self, batch: Sequence[int]) -> list[MicroBatch]:
        """All ranks' micro-batches of a global batch."""
        ranks = self._ranks if self._is_balanced else 1
        return [micro for rank in range(ranks) for micro in self._divide(batch, rank, ranks)]

    def _divide(self, batch: Sequence[int], rank: int, ranks: int) -> list[MicroBatch]:
        size = self._training.micro_batch_size
        if self._training.micro_batch_tokens:
            return budgeted_micro_batches(
                batch, self._lengths, self._budget, rank=rank, ranks=ranks, is_balanced=self._is_balanced
            )
        form = balanced_micro_batches if self._is_balanced else micro_batches
        num = max(self._training.global_batch_size // (size * ranks), 1)
        return form(batch, self._lengths, micro_batch_size=size, rank=rank, ranks=ranks, num=num)
