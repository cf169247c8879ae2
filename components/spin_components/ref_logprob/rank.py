"""One of several processes that score the pairs of a shard; `python -m spin_components.ref_logprob.rank JOB.json`."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_components.ref_logprob.job import ScoringJob
from spin_components.runtime.ranks import begin_rank, one_at_a_time, take_cores, take_part

if TYPE_CHECKING:
    from spin_components.data.shards import Score


def main(job_path: Path) -> None:
    """Score this rank's share."""
    rank, ranks = begin_rank()
    job = ScoringJob.model_validate_json(job_path.read_bytes())

    def work(report: Callable[[int], None]) -> dict[str, Any]:
        from spin_components.data.shards import Pair
        from spin_components.data.stored_rows import StoredRows
        from spin_components.model.compute import resolve_compute, set_threads
        from spin_components.model.frozen import ShardedLoader, WholeLoader
        from spin_components.model.scoring import load_scored
        from spin_components.ref_logprob.step import score_pairs

        hardware, training = job.settings.hardware, job.settings.training
        compute = resolve_compute(hardware, training.precision, local_rank=int(os.environ["LOCAL_RANK"]))
        if compute.device.type == "cpu":
            take_cores(rank, ranks)
        set_threads(hardware)
        loader = ShardedLoader(compute) if job.is_sharded else WholeLoader(compute)
        with nullcontext() if job.is_sharded else one_at_a_time(job_path):
            model = load_scored(job.folder, job.settings, compute, loader).eval()
        share = job.shares[rank]
        pairs = StoredRows([share.pairs], Pair, share.pairs.parent)
        scores = score_pairs(
            model,
            pairs,
            compute,
            share.batches,
            training,
            report,
            ranks=hardware.world_size,
            with_protos=share.with_protos,
        )
        loader.finish()
        loader.close()
        return {"scores": [_as_list(score) for score in scores]}

    take_part(job_path, job.where, work)


def _as_list(score: Score) -> list[int | float | None]:
    """The numbers of a score for JSON, which has no NaN."""
    has_proto = score.ref_proto is not None and not math.isnan(score.ref_proto)
    proto = score.ref_proto if has_proto else None
    return [score.index, score.origin, score.ref_actual, score.ref_generated, proto]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
