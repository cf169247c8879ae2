"""One execution of a schedule, in its pod: follows an unfinished run of the schedule, or submits a new run.

`python -m spin_pipeline.cluster.scheduled_run` takes the submission, the endpoint and the namespace as JSON from
standard input, and writes the outcome to the file that its argument names.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from spin_components.errors import AlreadyTrainedError, SpinError
from spin_components.runtime.signals import Interrupted, interruptible
from spin_pipeline.cluster.client import Api, connect
from spin_pipeline.cluster.follow import DONE, FAILED, Follower
from spin_pipeline.cluster.package import find_experiment
from spin_pipeline.cluster.submission import Submission
from spin_pipeline.cluster.submit import find_unfinished, pipeline_of, resolve, submit
from spin_pipeline.cluster.target import find_target
from spin_pipeline.watch.console import plain_console

_KFP_RUNTIME = "_KFP_RUNTIME"
"""Environment variable that KFP sets in a component; with it, its client and compiler cannot be imported."""


def launch(submission: dict[str, Any], endpoint: str, namespace: str) -> str:
    """Submit a run of the schedule and follow it in a process of its own, which can import KFP's client; see `execute`.

    Raises:
        SystemExit: the run failed or could not be started, or a signal ended this process.
    """
    with tempfile.TemporaryDirectory(prefix="spin-schedule-") as folder:
        outcome = Path(folder, "outcome")
        process = subprocess.Popen(
            [sys.executable, "-m", "spin_pipeline.cluster.scheduled_run", str(outcome)],
            stdin=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != _KFP_RUNTIME},
        )
        with interruptible():
            try:
                process.communicate(json.dumps([submission, endpoint, namespace]))
            except Interrupted as error:
                process.terminate()  # the run goes on; the schedule's next execution follows it
                process.wait()
                raise SystemExit(128 + error.number) from error
        if process.returncode:
            raise SystemExit(process.returncode if process.returncode > 0 else 1)
        return outcome.read_text("utf-8")


def execute(submission: dict[str, Any], endpoint: str, namespace: str) -> str:
    """Submit a run of the schedule and follow it, or follow the one that is unfinished.

    Args:
        submission: the submission, as written by `Submission.as_json`.
        endpoint, namespace: of the KFP API; empty for the pod's own.

    Returns: `done`, `stopped`, or `nothing new` if an earlier run has trained on the data.

    Raises:
        SystemExit: the run failed or could not be started; the error is printed to stderr.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    console = plain_console(width=200)
    try:
        code = _run(Submission.from_json(submission), connect(find_target(endpoint, namespace=namespace)), console)
    except AlreadyTrainedError as error:
        console.print(f"nothing to do: {error}", highlight=False, markup=False, soft_wrap=True)
        return "nothing new"
    except SpinError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        raise SystemExit(error.exit_code) from error
    if code == FAILED:
        raise SystemExit(code)
    return "done" if code == DONE else "stopped"


def _run(submission: Submission, api: Api, console: Console) -> int:
    experiment = find_experiment(api, submission.experiment_name)
    run_id = find_unfinished(api, experiment, submission.schedule) if experiment else ""
    if run_id:
        console.print(f"run {run_id} of this schedule is not finished; following it instead of starting another")
    else:
        package = pipeline_of(submission.settings)
        resolved, digest = resolve(submission, console)
        run_id = submit(api, resolved, digest, console, package=package).run_id
    return Follower(api, run_id, console).wait()


if __name__ == "__main__":
    returned = execute(*json.load(sys.stdin))
    Path(sys.argv[1]).write_text(returned, "utf-8")
