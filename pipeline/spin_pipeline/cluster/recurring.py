"""One run of a schedule, in its pod: an unfinished run of the schedule is followed, else a new one is submitted."""

from __future__ import annotations

import logging
import sys
from typing import Any

from rich.console import Console

from spin_components.errors import AlreadyTrainedError, SpinError
from spin_pipeline.cluster.client import Api, connect
from spin_pipeline.cluster.follow import DONE, FAILED, Follower
from spin_pipeline.cluster.order import Order
from spin_pipeline.cluster.package import find_experiment
from spin_pipeline.cluster.submit import find_unfinished, pipeline_of, prepared, submit
from spin_pipeline.cluster.target import find_target


def launch(order: dict[str, Any], endpoint: str, namespace: str) -> str:
    """Do what the schedule is for.

    Args:
        order: as `Order.as_json` gave it.
        endpoint, namespace: of KFP; empty for the pod's own.

    Returns: `done`, `stopped`, or `nothing new` where the data was trained on before.

    Raises:
        SystemExit: the run failed, or none could be started; standard error says why.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    console = Console(width=200)
    try:
        code = _run(Order.from_json(order), connect(find_target(endpoint, namespace=namespace)), console)
    except AlreadyTrainedError as error:
        console.print(f"nothing to do: {error}", highlight=False, markup=False, soft_wrap=True)
        return "nothing new"
    except SpinError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        raise SystemExit(error.exit_code) from error
    if code == FAILED:
        raise SystemExit(code)
    return "done" if code == DONE else "stopped"


def _run(order: Order, api: Api, console: Console) -> int:
    experiment = find_experiment(api, order.experiment_name)
    run_id = find_unfinished(api, experiment, order.schedule) if experiment else ""
    if run_id:
        console.print(f"run {run_id} of this schedule is not finished; it is followed, and no other started")
    else:
        package = pipeline_of(order.settings)
        placed, digest = prepared(order, console)
        run_id = submit(api, placed, digest, console, package=package).run_id
    return Follower(api, run_id, console).wait()
