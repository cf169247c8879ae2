"""One pod of several that train an epoch; runs `python -m spin_components.training.nodes.pod JOB`.

Kubeflow Trainer sets torchrun's `PET_` variables, the rendezvous among them. Each machine fetches its own inputs; each
rank stores its part of a save, and the first of all writes everything else.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from pydantic import BaseModel, ConfigDict

from spin_components.errors import SpinError
from spin_components.runtime.attempt import read_settings
from spin_components.runtime.process import configure_logging, end_process_group
from spin_components.runtime.signals import Interrupted, interruptible
from spin_components.settings.attempt import HardwareSettings
from spin_components.store.base import remove
from spin_components.store.open import open_run
from spin_components.training.inputs import check_numerics, numerics_here
from spin_components.training.nodes.heartbeat import end_unwatched
from spin_components.training.resume import begin_epoch
from spin_components.training.torchrun import run_ranks

logger = logging.getLogger(__name__)


class NodeJob(BaseModel):
    """The argument of each machine: addresses, since machines share nothing but storage.

    Attributes:
        inputs: the inputs that the epoch's manifest will record.
        hardware: the attempt's `[hardware]`.
        step: name of the step that started the job.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_uri: str
    attempt: str
    iteration: int
    epoch: int
    policy_uri: str
    inputs: dict[str, Any]
    hardware: HardwareSettings
    step: str = "train-epoch"


def train_here(job: NodeJob) -> None:
    """Train this machine's part of the epoch.

    Raises:
        SpinError: it cannot, or failed.
    """
    with open_run(job.run_uri) as run:
        settings = read_settings(run, job.hardware)
        check_numerics(numerics_here(settings), job.inputs)
        epoch_job = begin_epoch(
            run,
            settings,
            attempt=job.attempt,
            step=job.step,
            iteration=job.iteration,
            epoch=job.epoch,
            policy_uri=job.policy_uri,
            inputs=job.inputs,
        )
        if os.environ.get("PET_NODE_RANK", "0") == "0":
            end_unwatched(run, job.iteration, job.epoch, end_process_group)
        try:
            run_ranks(epoch_job, meeting=())
        finally:
            remove(epoch_job.scratch)


def main(text: str) -> int:
    """Run one pod; if it fails, its last line is the error's class and message, which the step reads from the log."""
    configure_logging()
    try:
        with interruptible():  # as a container's first process, it is not ended by a signal that it does not handle
            train_here(NodeJob.model_validate_json(text))
    except SpinError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    except Interrupted as error:
        return 128 + error.number
    return 0


if __name__ == "__main__":
    sys.exit(main("".join(sys.argv[1:])))
