"""Runs the ranks of this machine with torchrun."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from spin_components.memory.machines import this_machine
from spin_components.memory.shape import shape_of_folder
from spin_components.memory.work import Workload, longest_allowed
from spin_components.memory.zero_stage import resolve_zero_stage
from spin_components.runtime.ranks import ALLOCATOR, ALONE, launch
from spin_components.settings.settings import Settings
from spin_components.training.extensions import remove_stale_locks
from spin_components.training.job import EpochJob

logger = logging.getLogger(__name__)


def run_ranks(job: EpochJob, meeting: Sequence[str] = ALONE) -> bool:
    """Train with `hardware.ranks` processes on this machine.

    Args:
        job: the epoch.
        meeting: torchrun's rendezvous arguments; empty where its variables are set.

    Returns: False when the attempt's time ran out first.

    Raises:
        SpinError: what a rank raised, or EngineError where one ended without an error.
    """
    job = job.model_copy(update={"settings": _with_zero_stage(job)})
    remove_stale_locks()
    module, ranks = "spin_components.training.rank", job.settings.hardware.ranks
    outcomes = launch(module, job, ranks, where=job.where, meeting=meeting, variables=ALLOCATOR)
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
