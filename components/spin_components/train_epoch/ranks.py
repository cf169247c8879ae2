"""Starts the ranks of this machine with torchrun, and waits for them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from spin_components import errors
from spin_components.errors import EngineError
from spin_components.memory.machines import this_machine
from spin_components.memory.shape import shape_of_folder
from spin_components.memory.staging import resolve_zero_stage
from spin_components.memory.work import Workload, longest_allowed
from spin_components.settings import Settings
from spin_components.train_epoch.job import EpochJob

logger = logging.getLogger(__name__)

ALONE = ("--standalone",)
"""What torchrun is told where no other machine takes part."""


def run_ranks(job: EpochJob, meeting: Sequence[str] = ALONE) -> bool:
    """Train with `hardware.ranks` processes here.

    Args:
        job: the epoch.
        meeting: torchrun's arguments that say where the ranks of all machines meet; none when its own variables do.

    Returns: False when the attempt's time ran out first.

    Raises:
        SpinError: what a rank raised, or EngineError when one died without a word.
    """
    ranks = job.settings.hardware.ranks
    job = job.model_copy(update={"settings": _staged(job)})
    with tempfile.TemporaryDirectory(prefix="spin-epoch-") as folder:
        path = Path(folder, "job.json")
        path.write_text(job.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", *meeting, "--nproc-per-node", str(ranks)]
        command += ["-m", "spin_components.train_epoch.worker", str(path)]
        code = subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ}, check=False).returncode
        outcomes = [json.loads(outcome.read_text("utf-8")) for outcome in sorted(Path(folder).glob("outcome-*.json"))]
    for outcome in outcomes:
        if "error" in outcome:
            raise getattr(errors, outcome["error"])(outcome["message"])
    if code or len(outcomes) != ranks:
        raise EngineError(
            f"{job.where}: torchrun ended with code {code}; a rank died without a word (out of memory?). "
            "Its output is above; the last save is kept, and the same command goes on from there"
        )
    return bool(outcomes[0]["finished"])


def _staged(job: EpochJob) -> Settings:
    """The settings with a stage of ZeRO where they leave it open: the same on machines that are alike."""
    if job.settings.training.zero_stage != "auto":
        return job.settings
    shape = shape_of_folder(job.policy, what="the policy")
    work = Workload(job.settings, this_machine(job.settings), longest_allowed(job.settings))
    chosen = resolve_zero_stage(shape, work).settings
    logger.info("training.zero_stage = %s, by the memory there is", chosen.training.zero_stage)
    return chosen
