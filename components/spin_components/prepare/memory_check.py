"""The peak memory of every step, estimated before any of them begins."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from spin_components.errors import ModelError
from spin_components.memory.check import check_memory, format_peaks
from spin_components.memory.machines import pod_machine, this_machine
from spin_components.memory.shape import shape_of_folder
from spin_components.memory.work import Lengths, Workload, num_generated
from spin_components.runtime.step import Step
from spin_components.settings.settings import Settings
from spin_components.store.manifests import Manifest

logger = logging.getLogger(__name__)

_POD = "KFP_POD_NAME"
"""Variable that KFP's launcher sets in the pods of a cluster's tasks."""

SHORTEST = Lengths(1, 1, 1)
"""Stands for the data before it is read: weights and optimizer state do not depend on it."""


def foresee(step: Step, settings: Settings, folder: Path, lengths: Lengths, *, quiet: bool = False) -> dict[str, Any]:
    """Estimate every step's peak memory for a base model on this machine's disk.

    Args:
        step: the running `prepare`.
        settings: of the run.
        folder: the base model.
        lengths: of the longest pair.
        quiet: refuse what cannot fit, but neither log nor warn.

    Returns: facts for the manifest.

    Raises:
        ConfigError: a step clearly cannot fit, unless `hardware.memory_check` allows it.
    """

    def warn(message: str) -> None:
        if not quiet:
            step.warn(message)

    try:
        shape = shape_of_folder(folder, what="model.base")
    except ModelError as error:  # an architecture that is not known here can still be trained
        warn(f"memory is not estimated: {error}")
        return {}
    lengths = replace(lengths, num_generated=num_generated(settings))  # recorded ones may be of fewer iterations
    machine = pod_machine(settings) if os.environ.get(_POD) else this_machine(settings)
    estimates = check_memory(shape, Workload(settings, machine, lengths), warn)
    if not quiet:
        logger.info(format_peaks(estimates))
    peaks = {each.step: {"gpu_bytes": each.device_bytes, "memory_bytes": each.host_bytes} for each in estimates}
    return {"longest_pair": asdict(lengths), "memory_estimate": peaks}


def recorded_lengths(manifest: Manifest) -> Lengths:
    """Lengths of the longest pair, from the manifest of the data."""
    recorded = manifest.facts.get("longest_pair")
    return Lengths(**recorded) if recorded else SHORTEST
