"""Ranks that compute log-probabilities with models whose weights they divide; `python -m support.sharded_ranks JOB`."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from spin_components.runtime.ranks import begin_rank, take_part
from spin_components.settings.settings import Settings


class ShardedJob(BaseModel):
    """What the ranks compute.

    Attributes:
        folders: of models, by name.
        groups: of each rank, prompts with their answers; each is a pass of its own.
        settings: device and precision.
        failing: rank that fails before its second pass with the first model; -1 for none.
    """

    folders: dict[str, Path]
    groups: list[list[tuple[list[int], list[list[int]]]]]
    settings: Settings
    failing: int = -1


def main(job_path: Path) -> None:
    """Compute this rank's groups with each model."""
    rank, _ = begin_rank()
    job = ShardedJob.model_validate_json(job_path.read_bytes())

    def work(report: Callable[[int], None]) -> dict[str, Any]:
        import torch

        from spin_components.algorithm.logprobs import answer_logprobs
        from spin_components.algorithm.packing import Prompted
        from spin_components.errors import DataError
        from spin_components.model.compute import resolve_compute
        from spin_components.model.frozen import ShardedLoader
        from spin_components.model.scoring import load_scored

        torch.set_num_threads(1)
        compute = resolve_compute(job.settings.hardware, job.settings.training.precision)
        loader = ShardedLoader(compute)
        outcome: dict[str, Any] = {}
        for name, folder in job.folders.items():
            model = load_scored(folder, job.settings, compute, loader).eval()
            sharded_model = loader.model
            assert sharded_model is not None
            sizes: dict[str, int] = {"stored": _live_bytes()}
            logprobs = []
            for number, (prompt, answers) in enumerate(job.groups[rank]):
                if rank == job.failing and number:
                    raise DataError("this rank found a fault")
                with torch.inference_mode(), compute.autocast():
                    logprobs.append(answer_logprobs(model, [Prompted(prompt, answers)]).tolist())
            loader.finish()
            sizes |= {"held": sharded_model.held_bytes, "peak": sharded_model.peak_bytes}
            del model, sharded_model
            gc.collect()
            outcome[name] = {"logprobs": logprobs, "left": _live_bytes(), **sizes}
        loader.close()
        return outcome

    take_part(job_path, "the test", work)


def _live_bytes() -> int:
    """Bytes of all parameters and parts of such that this process holds."""
    import torch

    gc.collect()
    storages = {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
        for each in gc.get_objects()
        if type(each) in (torch.Tensor, torch.nn.Parameter) and not each.is_meta
    }
    return sum(storages.values())


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]))
