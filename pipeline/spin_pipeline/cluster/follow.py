"""Follows a run on a cluster: prints its progress, and returns the exit code from KFP and the run's storage."""

from __future__ import annotations

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
from spin_pipeline.cluster.progress import RunProgress, failed_line
from spin_pipeline.cluster.submit import run_uri_of, run_url
from spin_pipeline.runs.status import RunStatus, read_status

POLL = "SPIN_KFP_POLL_S"
"""Environment variable: seconds between two requests for the state of a run; 5 by default."""

OUTAGE = "SPIN_KFP_OUTAGE_S"
"""Environment variable: seconds for which KFP may be unreachable while a run is followed; 3600 by default."""

DONE, FAILED, LEFT = 0, 1, 3
_SETTLE_S = 15.0


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
        self._progress = RunProgress(console)
        self._state = ""  # last printed
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
        self._progress.show(run)
        if run.state and self._state != run.state:
            self._state = run.state
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
        self._console.print(f"interrupted; run {self._run_id} was told to end", **_PLAIN)
        return LEFT

    def _exit_code(self, run: Any) -> int:
        if run.state == "SUCCEEDED":
            return self._exit_code_of_storage(run)
        if self._was_cancelled:
            self._console.print("the run was told to end; submit it again to resume from its last save", **_PLAIN)
            return LEFT
        status = self._status(run)
        if status is not None:
            _show(status, self._console)
        if (status is None or status.failure is None) and (line := failed_line(run)):
            self._console.print(line, style="red", **_PLAIN)
        self._console.print(f"its log: {run_url(self._api, self._run_id)}", **_PLAIN)
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


def _show(status: RunStatus, console: Console) -> None:
    from spin_pipeline.watch.tables import print_status

    print_status(status, console)


_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}
