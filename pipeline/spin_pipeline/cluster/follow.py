"""Wait for a run on a cluster: what changes, one line each; how it ended, by KFP and by the run's own storage."""

from __future__ import annotations

import re
import time
from typing import Any

from rich.console import Console

from spin_components.errors import ClusterError, ConfigError, SpinError
from spin_components.signals import Interrupted, interruptible
from spin_components.store.addresses import scheme_of
from spin_components.store.lease import read_lease
from spin_components.store.limits import seconds
from spin_components.store.run import open_run
from spin_pipeline.cluster.client import Api
from spin_pipeline.cluster.submit import UNFINISHED, run_uri_of
from spin_pipeline.status import RunStatus, read_status

POLL = "SPIN_KFP_POLL_S"
"""Names the seconds between two looks at a run; 5 by default."""

OUTAGE = "SPIN_KFP_OUTAGE_S"
"""Names the seconds for which KFP may be away while a run is followed; 3600 by default."""

DONE, FAILED, LEFT = 0, 1, 3
_SETTLE_S = 15.0
_LAST_LINES = 15
# KFP tells of its own machinery as of tasks: drivers, the pods inside a task, the workflow itself
_MACHINERY = re.compile(r"root|executor|.*-driver|.*-[a-z0-9]{5}(-\d+-\d+)?|")
_STEPS = ("prepare", "generate", "ref-logprob", "train-epoch", "validate", "checkpoint", "evaluate", "retrain")


class Follower:
    """Follows one run to its end.

    Args:
        api: connected.
        run_id: KFP's.
        console: where lines go.
        timeout_s: after which the run is left alone; 0 for never.
        cancel_on_interrupt: whether a signal ends the run too.
    """

    def __init__(
        self, api: Api, run_id: str, console: Console, *, timeout_s: float = 0, cancel_on_interrupt: bool = False
    ) -> None:
        self._api, self._run_id, self._console = api, run_id, console
        self._timeout_s = timeout_s or float("inf")
        self._cancel_on_interrupt = cancel_on_interrupt
        self._told: dict[str, str] = {}
        self._was_cancelled = False

    def wait(self) -> int:
        """Returns 0 where the run succeeded, 1 where it failed, 3 where it was cancelled, stopped, or left alone.

        Raises:
            ClusterAccessError: KFP refuses to tell.
            ClusterError: it was away for too long.
        """
        poll_s, started = seconds(POLL, 5), time.monotonic()
        with interruptible():
            try:
                while (run := self._look()).state in UNFINISHED or not run.state:
                    if time.monotonic() - started > self._timeout_s:
                        return self._leave(f"still {run.state} after {self._timeout_s:.0f} s")
                    time.sleep(poll_s)
            except Interrupted:
                return self._cancel() if self._cancel_on_interrupt else self._leave("interrupted")
        return self._judge(run)

    def _look(self) -> Any:
        """The run as KFP tells it now, its changes told."""
        away_since = 0.0
        while True:
            try:
                run = self._api.call("following the run", self._api.client.runs.run_service_get_run, self._run_id)
                break
            except ClusterError as error:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > seconds(OUTAGE, 3600):
                    raise
                self._say(f"KFP is away, the run is not touched by that: {error}")
        self._tell(run)
        return run

    def _tell(self, run: Any) -> None:
        history = [status.state for status in run.state_history or []]
        self._was_cancelled |= bool({"CANCELING", "CANCELED"} & {run.state, *history})
        details = run.run_details.task_details if run.run_details else None
        for task in sorted(details or [], key=lambda task: str(task.start_time or "")):
            if task.state and self._told.get(task.task_id) != task.state and is_step(task.display_name or ""):
                self._told[task.task_id] = task.state
                self._say(f"{task.display_name:<28}{task.state.lower()}")
        if run.state and self._told.get("") != run.state:
            self._told[""] = run.state
            self._say(f"{'run':<28}{run.state.lower()}")

    def _say(self, text: str) -> None:
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
        self._console.print(f"interrupted; run {self._run_id} was told to end", **_PLAIN)
        return LEFT

    def _judge(self, run: Any) -> int:
        if run.state == "SUCCEEDED":
            return self._judge_storage(run)
        if self._was_cancelled:
            self._console.print("the run was cancelled; submitting it again goes on from its last save", **_PLAIN)
            return LEFT
        for line in failures(run):
            self._console.print(line, style="red", **_PLAIN)
        status = self._status(run)
        if status is not None:
            _show(status, self._console)
        return FAILED

    def _judge_storage(self, run: Any) -> int:
        """KFP says SUCCEEDED when no task failed: a run that its time limit stopped, or that stopped unseen, too."""
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
            f"KFP says SUCCEEDED, but the run is not finished: {status.state} in {status.run_uri}",
            style="yellow",
            **_PLAIN,
        )
        return LEFT if status.state == "stopped" else FAILED

    def _status(self, run: Any) -> RunStatus | None:
        """What storage says of this attempt; None, and why, where it cannot be asked from here."""
        uri = run_uri_of(run)
        if scheme_of(uri) != "s3":
            return None
        try:
            lease = read_lease(open_run(uri))
            if lease is None or lease.owner != self._run_id:
                raise ConfigError("it knows nothing of this attempt" if lease is None else "another attempt came since")
            return read_status(uri)
        except SpinError as error:
            self._console.print(f"by KFP's word alone; {uri} was asked in vain: {error}", style="dim", **_PLAIN)
            return None


def is_step(name: str) -> bool:
    """Whether a task is one of the pipeline's, not KFP's machinery around it."""
    return (name.startswith(_STEPS) and not name.endswith("-driver")) or not _MACHINERY.fullmatch(name)


def failures(run: Any) -> list[str]:
    """What KFP says of a failure: the tasks, and the last lines of what they said."""
    tasks = run.run_details.task_details if run.run_details else []
    failed = [task for task in tasks or [] if task.state == "FAILED"]
    lines = []
    for task in [task for task in failed if is_step(task.display_name or "")] or failed:
        pods = [child.pod_name for child in task.child_tasks or [] if child.pod_name]
        where = f" (pod {task.pod_name or pods[-1]})" if task.pod_name or pods else ""
        lines += [f"failed: {task.display_name}{where}", *_last_lines(task)]
    return [*lines, *_last_lines(run)]


def _last_lines(thing: Any) -> list[str]:
    errors = [thing.error, *(status.error for status in thing.state_history or [])]
    said = dict.fromkeys(error.message for error in errors if error and error.message)
    return [f"  {line}" for text in said for line in text.strip().splitlines()[-_LAST_LINES:]]


def _show(status: RunStatus, console: Console) -> None:
    from spin_pipeline.tables import print_status

    print_status(status, console)


_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}
