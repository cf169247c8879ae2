"""How evenly the pairs of a global batch are divided among ranks, by tokens.

    python tests/benchmarks/ranks.py [--ranks 8] [--micro-batch-size 8] [--steps 500] [--tokens 1200] [--sigma 0.6]

Lengths are log-normal and cut at 2048 tokens, as those of chats are roughly; a global batch has 64 pairs, as in
`zephyr-7b.toml`. Printed is the mean over steps of the slowest rank's tokens over the mean rank's: by length, in which
micro-batches are dealt where batches are padded, and by tokens, as where they are packed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from spin_components.algorithm.batching import MicroBatch, balanced_micro_batches, form_batches, micro_batches

GLOBAL_BATCH, LONGEST = 64, 2048


def slowest(form: Callable[..., list[MicroBatch]], lengths: NDArray[np.int64], ranks: int, size: int) -> float:
    """Mean over all global batches of the largest number of tokens of a rank over that of the mean rank."""
    ratios = []
    for batch in form_batches(len(lengths), GLOBAL_BATCH, 0):
        tokens = []
        for rank in range(ranks):
            num = GLOBAL_BATCH // (size * ranks)
            micros = form(batch, lengths, micro_batch_size=size, rank=rank, ranks=ranks, num=num)
            tokens.append(sum(int(lengths[list(micro.pairs)].sum()) for micro in micros))
        ratios.append(max(tokens) / (sum(tokens) / ranks))
    return sum(ratios) / len(ratios)


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=1200)
    parser.add_argument("--sigma", type=float, default=0.6)
    options = parser.parse_args()
    drawn = np.random.default_rng(0).lognormal(np.log(options.tokens), options.sigma, options.steps * GLOBAL_BATCH)
    lengths = np.clip(drawn, 16, LONGEST).astype(np.int64)
    for name, form in (("by length", micro_batches), ("by tokens", balanced_micro_batches)):
        ratio = slowest(form, lengths, options.ranks, options.micro_batch_size)
        sys.stdout.write(f"{name}: slowest/mean {ratio:.3f}\n")


if __name__ == "__main__":
    main()
