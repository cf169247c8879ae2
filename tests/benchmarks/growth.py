"""How time and memory of scoring and training grow: with the number of pairs, and with their length.

    python tests/benchmarks/growth.py [--rounds 3] [--json FILE]

The demo model in float32. Pairs: 1, 2, 4 and 8 times 8 real pairs, scored, then trained in global batches of 8.
Length: one pair of 256 to 2048 tokens, of real prompts and answers laid end to end, forward and backward. Every size in
a process of its own, sizes in turn; the exponent is the slope of a line through the logarithms of the medians. What
does not grow (weights, gradients, optimizer state) is part of the memory, so its exponent is far below 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from pairs import COMPUTE, GLOBAL_BATCH, batches_of, in_a_process, make_pairs, settings_of, tell

from spin_components.algorithm.batching import micro_batches
from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.loss import Objective
from spin_components.algorithm.packing import Prompted
from spin_components.data.pair_counts import PairCounts
from spin_components.data.shards import Pair, read_rows
from spin_components.model.compute import set_threads
from spin_components.settings.attempt import HardwareSettings

NUMBERS = (8, 16, 32, 64)
LENGTHS = (256, 512, 1024, 2048)


def of_pairs(folder: Path, num: int) -> dict[str, Any]:
    """Seconds to score and train so many pairs."""
    from spin_components.model.scoring import load_scored
    from spin_components.record.pairs import ScoredPairs
    from spin_components.ref_logprob.step import score_pairs
    from spin_components.training.torch_backend import TorchBackend
    from spin_components.training.train_step import train_single_step

    settings = settings_of(folder, lr=1e-5)
    training = settings.training
    pairs = (read_rows(folder / "pairs.parquet", Pair) * num)[:num]
    model = load_scored(folder / "model", settings, COMPUTE)
    batches = batches_of(num)
    started = time.monotonic()
    scores = score_pairs(model.eval(), pairs, COMPUTE, batches, training)
    data = ScoredPairs(pairs, scores, batches, PairCounts())
    backend = TorchBackend(model.train(), training, COMPUTE)
    lengths = [pair.num_tokens for pair in pairs]
    for number, batch in enumerate(batches):
        size = training.micro_batch_size
        share = micro_batches(batch, lengths, micro_batch_size=size, rank=0, ranks=1, num=GLOBAL_BATCH // size)
        train_single_step(
            backend,
            data,
            share,
            batch=batch,
            objective=Objective(0.1),
            lr=1e-5,
            is_step_zero=number == 0,
            where="benchmark",
        )
    return {"seconds": time.monotonic() - started}


def of_length(folder: Path, length: int) -> dict[str, Any]:
    """Seconds of a forward and backward pass of one pair: half prompt, a quarter each answer."""
    from spin_components.model.scoring import load_scored

    tokens = [
        token for pair in read_rows(folder / "pairs.parquet", Pair) for token in pair.prompt_ids + pair.actual_ids
    ]
    tokens = (tokens * (1 + length // len(tokens)))[:length]
    half, quarter = length // 2, length // 4
    group = Prompted(tokens[:half], (tokens[half : half + quarter], tokens[half + quarter :]))
    model = load_scored(folder / "model", settings_of(folder), COMPUTE).train()
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        answer_logprobs(model, [group]).sum().backward()  # type: ignore[no-untyped-call]
        seconds.append(time.monotonic() - started)
    return {"seconds": statistics.median(seconds[1:])}


def exponent(sizes: tuple[int, ...], values: list[float]) -> float:
    """b of values = a * sizes ** b."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def main() -> None:
    """Alternate, then print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where the model and the pairs lie, or shall be made")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        set_threads(HardwareSettings())
        kind, size = options.one
        tell({"pairs": of_pairs, "tokens": of_length}[kind](options.folder, int(size)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        if not (folder / "pairs.parquet").exists():
            make_pairs(folder, 24)
        kept = {}
        for kind, sizes in (("pairs", NUMBERS), ("tokens", LENGTHS)):
            found: dict[int, list[dict[str, Any]]] = {size: [] for size in sizes}
            for _ in range(options.rounds):
                for size in sizes:
                    arguments = ("--one", kind, str(size), "--folder", str(folder))
                    found[size].append(in_a_process(__file__, *arguments))
            median = {
                name: [statistics.median(each[name] for each in found[size]) for size in sizes]
                for name in ("seconds", "peak_mib")
            }
            sys.stdout.write(f"{kind:>10}{'seconds':>10}{'peak MiB':>10}\n")
            for row in zip(sizes, *median.values(), strict=True):
                sys.stdout.write("{:10}{:10.1f}{:10.0f}\n".format(*row))
            fitted = {name: exponent(sizes, values) for name, values in median.items()}
            sys.stdout.write(f"{'exponent':>10}{fitted['seconds']:10.2f}{fitted['peak_mib']:10.2f}\n")
            kept[kind] = {"sizes": sizes, **median, "exponents": fitted}
        if options.json:
            options.json.write_text(json.dumps(kept))


if __name__ == "__main__":
    main()
