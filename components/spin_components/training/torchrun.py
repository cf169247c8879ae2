"""Runs the ranks of this machine with torchrun."""

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
from spin_components.memory.work import Workload, longest_allowed
from spin_components.memory.zero_stage import resolve_zero_stage
from spin_components.settings.settings import Settings
from spin_components.training.extensions import remove_stale_locks
from spin_components.training.job import EpochJob

logger = logging.getLogger(__name__)

ALONE = ("--standalone", "--local-addr=127.0.0.1")
"""Torchrun's arguments for ranks on one machine. Without the address they look up the host's name, which a pod or a
container may not resolve, and wait for each other for ever."""


def run_ranks(job: EpochJob, meeting: Sequence[str] = ALONE) -> bool:
    """Train with `hardware.ranks` processes on this machine.

    Args:
        job: the epoch.
        meeting: torchrun's rendezvous arguments; empty where its variables are set.

    Returns: False when the attempt's time ran out first.

    Raises:
        SpinError: what a rank raised, or EngineError where one ended without an error.
    """
    ranks = job.settings.hardware.ranks
    job = job.model_copy(update={"settings": _with_zero_stage(job)})
    remove_stale_locks()
    with tempfile.TemporaryDirectory(prefix="spin-epoch-") as folder:
        path = Path(folder, "job.json")
        path.write_text(job.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", *meeting, "--nproc-per-node", str(ranks)]
        command += ["-m", "spin_components.training.rank", str(path)]
        code = subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ}, check=False).returncode
        outcomes = [json.loads(outcome.read_text("utf-8")) for outcome in sorted(Path(folder).glob("outcome-*.json"))]
    for outcome in outcomes:
        if "error" in outcome:
            raise getattr(errors, outcome["error"])(outcome["message"])
    if code or len(outcomes) != ranks:
        raise EngineError(
            f"{job.where}: torchrun ended with code {code}; a rank ended without an error (out of memory?). "
            "Its output is above; the last save is kept, and the same command resumes from it"
        )
    return bool(outcomes[0]["finished"])


def _with_zero_stage(job: EpochJob) -> Settings:
    """The settings with `training.zero_stage = "auto"` resolved: the same on like machines."""
    if job.settings.training.zero_stage != "auto":
        return job.settings
    shape = shape_of_folder(job.policy, what="the policy")
    work = Workload(job.settings, this_machine(job.settings), longest_allowed(job.settings))
    chosen = resolve_zero_stage(shape, work).settings
    logger.info("training.zero_stage = %s, by the memory of this machine", chosen.training.zero_stage)
    return chosen
