"""Memory and time of what reads pairs: the pool, batches, one rank's reading, the report.

    python tests/benchmarks/reading.py [--pairs 10000 100000 1000000] [--tokens 100] [--ranks 8] [--parts pool rank]

Pairs are synthetic, in the true formats: half are the iteration's own, half history, `--tokens` each in all. Each part
runs in a process of its own, for a peak of its own, without a model. `measure` is for other benchmarks to call.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from spin_components.algorithm.batching import derive_seed, form_batches, micro_batches, order_batches
from spin_components.data.pair_counts import PairCounts
from spin_components.data.shards import Pair, Score, write_rows
from spin_components.record.pairs import generations_input, read_generations
from spin_components.store import layout
from spin_components.store.digests import digest_of
from spin_components.store.local import LocalRun
from spin_components.store.manifests import Manifest

GLOBAL_BATCH, MICRO_BATCH = 64, 4
ITERATION, ORIGINS = 1, (1, 0)
_WRITTEN = 20_000
"""Rows of a row group of the synthetic files."""


def make_run(folder: Path, num_pairs: int, num_tokens: int) -> LocalRun:
    """A run whose iteration 1 is scored, with half of the pairs from iteration 0."""
    run, random = LocalRun(folder), np.random.default_rng(0)
    _manifest(run, layout.DATA_MANIFEST, {}, {"num_shards": 1, "eos_ids": [2]})
    num_each = num_pairs // 2
    for origin in ORIGINS:
        key = layout.generations(origin, 0)
        with run.staged(key) as staged:
            write_rows(staged.path, Pair, [])
            schema = parquet.read_schema(staged.path)
            with parquet.ParquetWriter(staged.path, schema) as writer:
                for start in range(0, num_each, _WRITTEN):
                    num = min(_WRITTEN, num_each - start)
                    writer.write_table(_pairs(random, start, num, origin, num_tokens, schema))
        _manifest(run, layout.manifest_of(key), staged.outputs, {"num_pairs": num_each, "finish_reasons": {}})
    batches = form_batches(2 * num_each, GLOBAL_BATCH, derive_seed(0, "batches", ITERATION, 0))
    batch = np.zeros(2 * num_each, dtype=np.int32)
    for number, members in enumerate(batches):
        batch[list(members)] = number
    key = layout.ref_logprobs(ITERATION, 0)
    with run.staged(key) as staged:
        write_rows(staged.path, Score, [])
        schema = parquet.read_schema(staged.path)
        columns = {
            "index": np.tile(np.arange(num_each), 2),
            "ref_actual": random.normal(-60, 5, 2 * num_each).astype(np.float32),
            "ref_generated": random.normal(-50, 5, 2 * num_each).astype(np.float32),
            "batch": batch,
            "origin": np.repeat(ORIGINS, num_each).astype(np.int32),
        }
        parquet.write_table(pa.table(columns, schema=schema), staged.path)
    counts = PairCounts(num_pairs=2 * num_each, num_by_origin=dict.fromkeys(ORIGINS, num_each))
    inputs = {generations_input(o): digest_of(read_generations(run, o, 0).outputs) for o in ORIGINS}
    _manifest(run, layout.manifest_of(key), staged.outputs, counts.model_dump(mode="json"), inputs)
    return run


def _pairs(
    random: np.random.Generator, start: int, num: int, origin: int, num_tokens: int, schema: pa.Schema
) -> pa.Table:
    """Pairs of `num_tokens` in the mean: a quarter prompt, the rest both answers, with a long tail."""

    def ids(mean: float) -> pa.Array:
        lengths = np.clip(random.lognormal(np.log(mean) - 0.18, 0.6, num), 1, 20 * mean).astype(np.int32)
        values = random.integers(10, 30_000, lengths.sum(), dtype=np.int32)
        return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *lengths]), pa.int32()), pa.array(values))

    columns = {
        "index": pa.array(np.arange(start, start + num)),
        "prompt_ids": ids(num_tokens / 4),
        "actual_ids": ids(num_tokens * 3 / 8),
        "generated_ids": ids(num_tokens * 3 / 8),
        "finish_reason": pa.array(["stop"] * num),
        "origin": pa.array(np.full(num, origin), pa.int32()),
        "sampled_logprob": pa.array(np.zeros(num), pa.float32()),
    }
    return pa.table(columns, schema=schema)


def _manifest(run: LocalRun, key: str, outputs: object, facts: object, inputs: object = None) -> None:
    manifest = Manifest.model_validate({"step": "made", "inputs": inputs or {}, "outputs": outputs, "facts": facts})
    run.write_json(key, manifest.model_dump(mode="json"))


def read_nothing(run: LocalRun, ranks: int) -> None:
    """What the imports take."""


def read_pool(run: LocalRun, ranks: int) -> None:
    """What `ref-logprob` reads: own pairs and history, without duplicates; then every pair of every global batch."""
    from spin_components.record.pairs import read_pairs
    from spin_components.ref_logprob.pool import Hygiene, pool_pairs

    own, earlier = (read_pairs(run, [read_generations(run, origin, 0)]) for origin in ORIGINS)
    pool = pool_pairs(own, earlier, Hygiene(frozenset({2}), max_similarity=0.95))
    for batch in form_batches(len(pool.pairs), GLOBAL_BATCH, 0):
        for i in batch:
            _ = pool.pairs[i]


def read_rank(run: LocalRun, ranks: int) -> None:
    """What rank 0 of `train-epoch` reads: the pairs of its micro-batches, in the order of an epoch."""
    from spin_components.record.training_pairs import load_training_pairs

    data = load_training_pairs(run, ITERATION)
    batches = data.batches.ordered(order_batches(len(data.batches), 0))
    num = -(-GLOBAL_BATCH // (MICRO_BATCH * ranks))

    def share(batch: tuple[int, ...]) -> list[int]:
        micros = micro_batches(batch, data.num_tokens, micro_batch_size=MICRO_BATCH, rank=0, ranks=ranks, num=num)
        return [i for micro in micros for i in micro.pairs]

    read = data.read(i for batch in batches for i in share(batch))
    for batch in batches:
        for i in share(batch):
            _ = read.pairs[i], read.scores[i]


def read_report(run: LocalRun, ranks: int) -> None:
    """The report of a finished run of as many pairs, all of one iteration."""
    from spin_components.report.page import build_page

    size = len(build_page(LocalRun(run.root / "finished")).encode())
    if size > MOST_BYTES:
        raise ValueError(f"the report has {size} bytes, expected at most {MOST_BYTES}")


MOST_BYTES = 5_000_000
"""Of a report."""

PARTS: dict[str, Callable[[LocalRun, int], None]] = {
    "imports": read_nothing,
    "pool": read_pool,
    "rank": read_rank,
    "report": read_report,
}


def measure(part: str, folder: Path, ranks: int = 8) -> dict[str, float]:
    """Run one part in a process of its own on a run of `make_run`; seconds, and MiB at the peak."""
    command = [sys.executable, __file__, "--measure", part, str(folder), "--ranks", str(ranks)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output)  # type: ignore[no-any-return]


def _make_finished(folder: Path, num_pairs: int, num_tokens: int) -> None:
    report = import_module("report")  # beside this file
    whole = sum(sum(lengths) / 2 for lengths in (report.PROMPT, report.ACTUAL, report.GENERATED))
    report.LargeRun(folder, num_pairs, num_pairs // GLOBAL_BATCH, 1, share=num_tokens / whole).write()


def _measure_here(part: str, folder: Path, ranks: int) -> None:
    if part == "report":
        import spin_components.report.page
    else:
        import spin_components.ref_logprob.step  # noqa: F401  what a step of this kind imports, torch too
    started = time.monotonic()
    PARTS[part](LocalRun(folder), ranks)
    took_s = time.monotonic() - started
    status = Path("/proc/self/status").read_text("ascii").splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    sys.stdout.write(json.dumps({"s": round(took_s, 2), "peak_mib": round(peak / 1024)}))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--measure", nargs=2, metavar=("PART", "FOLDER"))
    options = parser.parse_args()
    if options.measure:
        _measure_here(options.measure[0], Path(options.measure[1]), options.ranks)
        return
    for num_pairs in options.pairs:
        with tempfile.TemporaryDirectory() as folder:
            make_run(Path(folder) / "run", num_pairs, options.tokens)
            for part in options.parts:
                if part == "report":
                    _make_finished(Path(folder) / "run/finished", num_pairs, options.tokens)
                found = measure(part, Path(folder) / "run", options.ranks)
                sys.stdout.write(f"{num_pairs:>9,} pairs, {part:<8} {found['peak_mib']:>6,} MiB {found['s']:>8.2f} s\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
