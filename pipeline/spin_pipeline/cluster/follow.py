"""Follows a run on a cluster: prints each change of state, and returns the exit code from KFP and the run's storage."""

from __future__ import annotations

import re
import time
from typing import Any

from rich.console import Console

from spin_components.errors import ClusterError, ConfigError, SpinError
from spin_components.machine import seconds
from spin_components.runtime.signals import Interrupted, interruptible
from spin_components.store.addresses import scheme_of
from spin_components.store.lease import read_lease
from spin_components.store.open import open_run
from spin_pipeline.cluster.client import Api
from spin_pipeline.cluster.ended_run import UNFINISHED, release_of
from spin_pipeline.cluster.submit import run_uri_of
from spin_pipeline.runs.status import RunStatus, read_status

POLL = "SPIN_KFP_POLL_S"
"""Environment variable: seconds between two requests for the state of a run; 5 by default."""

OUTAGE = "SPIN_KFP_OUTAGE_S"
"""Environment variable: seconds for which KFP may be unreachable while a run is followed; 3600 by default."""

DONE, FAILED, LEFT = 0, 1, 3
_SETTLE_S = 15.0
_LAST_LINES = 15
# names of KFP's internal tasks, which its API lists too: drivers, the pods of a task, the workflow itself
_INTERNAL = re.compile(r"root|executor|.*-driver|.*-[a-z0-9]{5}(-\d+-\d+)?|")
_STEPS = ("prepare", "generate", "ref-logprob", "train-epoch", "validate", "checkpoint", "evaluate", "retrain")


class Follower:
    """Follows a run on a cluster to its end.

    Args:
        api: the KFP API.
        run_id: KFP's id of the run.
        console: to print to.
        timeout_s: seconds to wait; 0 for no limit. The run goes on after that.
        cancel_on_interrupt: whether SIGINT and SIGTERM terminate the run.
    """

    def __init__(
        self, api: Api, run_id: str, console: Console, *, timeout_s: float = 0, cancel_on_interrupt: bool = False
    ) -> None:
        self._api, self._run_id, self._console = api, run_id, console
        self._timeout_s = timeout_s or float("inf")
        self._cancel_on_interrupt = cancel_on_interrupt
        self._printed: dict[str, str] = {}  # last printed state by task id; "" for the run
        self._was_cancelled = False

    def wait(self) -> int:
        """Wait for the run; returns 0 if it succeeded, 1 if it failed, 3 if it was cancelled, stopped or still runs.

        Raises:
            ClusterAccessError: KFP denies access.
            ClusterError: KFP was unreachable for too long.
        """
        poll_s, started = seconds(POLL, 5), time.monotonic()
        with interruptible():
            try:
                while (run := self._poll()).state in UNFINISHED or not run.state:
                    if time.monotonic() - started > self._timeout_s:
                        return self._leave(f"still {run.state} after {self._timeout_s:.0f} s")
                    time.sleep(poll_s)
            except Interrupted:
                return self._cancel() if self._cancel_on_interrupt else self._leave("interrupted")
        if release_of(run, run_uri_of(run)):
            self._print(f"released the lease of the ended run on {run_uri_of(run)}")
        return self._exit_code(run)

    def _poll(self) -> Any:
        """Get the run from KFP and print what changed."""
        unreachable_since = 0.0
        while True:
            try:
                run = self._api.call("following the run", self._api.client.runs.run_service_get_run, self._run_id)
                break
            except ClusterError as error:
                unreachable_since = unreachable_since or time.monotonic()
                if time.monotonic() - unreachable_since > seconds(OUTAGE, 3600):
                    raise
                self._print(f"KFP is unreachable, which does not affect the run: {error}")
        self._print_changes(run)
        return run

    def _print_changes(self, run: Any) -> None:
        history = [status.state for status in run.state_history or []]
        self._was_cancelled |= bool({"CANCELING", "CANCELED"} & {run.state, *history})
        details = run.run_details.task_details if run.run_details else None
        for task in sorted(details or [], key=lambda task: str(task.start_time or "")):
            if task.state and self._printed.get(task.task_id) != task.state and is_step(task.display_name or ""):
                self._printed[task.task_id] = task.state
                self._print(f"{task.display_name:<28}{task.state.lower()}")
        if run.state and self._printed.get("") != run.state:
            self._printed[""] = run.state
            self._print(f"{'run':<28}{run.state.lower()}")

    def _print(self, text: str) -> None:
        self._console.print(f"{time.strftime('%H:%M:%S')}  {text}", **_PLAIN)

    def _leave(self, why: str) -> int:
        self._console.print(
            f"{why}; the run goes on. Follow it with `spin-pipeline follow {self._run_id} "
            f"--endpoint {self._api.target.endpoint}`",
            **_PLAIN,
        )
        return LEFT

    def _cancel(self) -> int:
        self._api.call("ending the run", self._api.client.runs.run_service_terminate_run, self._run_id)
        self._console.print(f"interrupted; KFP was asked to terminate run {self._run_id}", **_PLAIN)
        return LEFT

    def _exit_code(self, run: Any) -> int:
        if run.state == "SUCCEEDED":
            return self._exit_code_of_storage(run)
        if self._was_cancelled:
            self._console.print("the run was cancelled; submit it again to resume from its last save", **_PLAIN)
            return LEFT
        for line in failures(run):
            self._console.print(line, style="red", **_PLAIN)
        status = self._status(run)
        if status is not None:
            _show(status, self._console)
        return FAILED

    def _exit_code_of_storage(self, run: Any) -> int:
        """Exit code of a run that KFP reports as SUCCEEDED, which only means that no task failed.

        The run may also have been stopped by its time limit or by something that KFP does not notice.
        """
        deadline = time.monotonic() + _SETTLE_S
        status = self._status(run)
        while status is not None and status.state == "running" and time.monotonic() < deadline:
            time.sleep(1.0)
            status = self._status(run)
        if status is None:
            return DONE
        _show(status, self._console)
        if status.state == "done":
            return DONE
        self._console.print(
            f"KFP reports SUCCEEDED, but the run is not finished: {status.state} in {status.run_uri}",
            style="yellow",
            **_PLAIN,
        )
        return LEFT if status.state == "stopped" else FAILED

    def _status(self, run: Any) -> RunStatus | None:
        """Status of this attempt in storage; None, after printing the reason, if it cannot be read from here."""
        uri = run_uri_of(run)
        if scheme_of(uri) != "s3":
            return None
        try:
            lease = read_lease(open_run(uri))
            if lease is None or lease.owner != self._run_id:
                raise ConfigError(
                    "it has no record of this attempt" if lease is None else "a newer attempt replaced it"
                )
            return read_status(uri)
        except SpinError as error:
            message = f"the state is KFP's only; reading it from {uri} failed: {error}"
            self._console.print(message, style="dim", **_PLAIN)
            return None


def is_step(name: str) -> bool:
    """Whether a task is a step of the pipeline, not one of KFP's internal tasks."""
    return (name.startswith(_STEPS) and not name.endswith("-driver")) or not _INTERNAL.fullmatch(name)


def failures(run: Any) -> list[str]:
    """The failed tasks of a run as KFP reports them, with the last lines of their errors."""
    tasks = run.run_details.task_details if run.run_details else []
    failed = [task for task in tasks or [] if task.state == "FAILED"]
    lines = []
    for task in [task for task in failed if is_step(task.display_name or "")] or failed:
        pods = [child.pod_name for child in task.child_tasks or [] if child.pod_name]
        where = f" (pod {task.pod_name or pods[-1]})" if task.pod_name or pods else ""
        lines += [f"failed: {task.display_name}{where}", *_last_lines(task)]
    return [*lines, *_last_lines(run)]


def _last_lines(task_or_run: Any) -> list[str]:
    errors = [task_or_run.error, *(status.error for status in task_or_run.state_history or [])]
    messages = dict.fromkeys(error.message for error in errors if error and error.message)
    return [f"  {line}" for text in messages for line in text.strip().splitlines()[-_LAST_LINES:]]


def _show(status: RunStatus, console: Console) -> None:
    from spin_pipeline.watch.tables import print_status

    print_status(status, console)


_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}
