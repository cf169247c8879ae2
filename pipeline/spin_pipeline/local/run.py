"""Run or resume a run on this machine: start the driver, show its events, read from storage how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

from rich.console import Console

from spin_components.errors import ConfigError
from spin_components.prepare.input_checks import check_inputs
from spin_components.record.events import EventTail
from spin_components.runtime.signals import Interrupted, interruptible, uninterrupted
from spin_components.runtime.supervisor import RETRIES
from spin_components.settings.packages import check_packages
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.lease import check_free
from spin_components.store.lock import is_locked, locked
from spin_components.store.open import open_run
from spin_pipeline.deploy.cluster_settings import ClusterSettings, Configuration
from spin_pipeline.runs.status import RunStatus, read_status
from spin_pipeline.watch.live import Display, open_display

_WAIT_S = 0.2
_GRACE_S = 3.0
LOG = "driver.log"
DRIVER = (sys.executable, "-m", "spin_pipeline.local.driver")


def run_local(settings: Settings, console: Console) -> RunStatus:
    """Run or resume a run, and return how it stands at the end.

    Raises:
        ConfigError, DataError, ModelError, StorageAccessError: something is wrong that can be seen before any work.
        BusyError: another runner is at work on it.
    """
    if not settings.run.uri:
        raise ConfigError("run.uri is empty; name the folder of the run with --run-uri DIR")
    if settings.hardware.nodes > 1:
        raise ConfigError(
            f"hardware.nodes = {settings.hardware.nodes}, but this is one machine; "
            "set it to 1, or submit the run to a cluster"
        )
    run = open_run(settings.run.uri)
    settings = settings.model_copy(update={"run": settings.run.model_copy(update={"uri": run.uri})})
    run.probe()
    check_packages(settings.tracking, settings.lora, settings.evaluation)
    check_inputs(settings)
    log = run.scratch / LOG
    console.print(
        f"run {settings.run.name}: {run.uri} (everything steps print: {log})", highlight=False, soft_wrap=True
    )
    with locked(run.scratch) as lock, log.open("ab") as output:
        check_free(run)
        display = open_display(console, run.uri)
        driver = subprocess.Popen(
            [*DRIVER, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=(lock,),
            # keeps the current folder off the path: KFP imports `docker`, and would take a folder of that name for it
            env={**os.environ, "PYTHONSAFEPATH": "1", RETRIES: str(_retries(settings))},
        )
        code = _follow(driver, settings, EventTail(run, skip=not display.wants_history), display, run.poll_s)
        if code > 0:
            check_free(run)  # another machine may have been first, between that look and the first step
    _wait_for_steps(run)
    status = read_status(run.uri) if run.exists(layout.ATTEMPT) else None
    if status is None or (status.state == "interrupted" and code > 0):
        _show_log(run, console)
        failure = {"step": "driver", "error": "RuntimeError", "message": _where_to_look(run), "exit_code": 1}
        blank: dict[str, Any] = {"iteration": None, "epoch": None, "step": 0, "consumed_samples": 0, "best": None}
        known = status.model_dump() if status else {"run_uri": run.uri, "iterations": [], "base": {}, **blank}
        return RunStatus.model_validate({**known, "state": "failed", "failure": failure})
    return status


def _retries(settings: Settings) -> int:
    """How often a step is begun again: `cluster.retries`, which holds on one machine too."""
    cluster = settings.cluster if isinstance(settings, Configuration) else ClusterSettings()
    return cluster.retries


def _follow(
    driver: subprocess.Popen[bytes], settings: Settings, tail: EventTail, display: Display, poll_s: float
) -> int:
    """Give the driver its settings and show the run's events until it ends; returns its exit code.

    SIGINT and SIGTERM end the driver and its children; the code is negative then.
    """
    with interruptible():
        try:
            _send(driver, settings)
            shown = 0.0
            while driver.poll() is None:
                if time.monotonic() - shown >= poll_s:
                    display.show(tail.new())
                    shown = time.monotonic()
                time.sleep(_WAIT_S)
            display.show(tail.new())
            return driver.returncode
        except Interrupted as signal_:
            display.interrupted()
            return -signal_.number
        finally:
            with uninterrupted():
                display.close()
                _end(driver)


def _send(driver: subprocess.Popen[bytes], settings: Settings) -> None:
    assert driver.stdin is not None
    with suppress(BrokenPipeError), driver.stdin as pipe:  # it has ended: its log says why
        pipe.write(settings.model_dump_json(include=set(Settings.model_fields)).encode())


def _end(driver: subprocess.Popen[bytes]) -> None:
    """End the driver's process group; forked steps lead groups of their own and end when they find it gone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(driver.pid, number)
        except ProcessLookupError:
            break
        try:
            driver.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            continue
    driver.wait()


def _wait_for_steps(run: RunStore) -> None:
    """Wait a few seconds for steps whose driver was ended; they hold the run's lock until they end."""
    deadline = time.monotonic() + _GRACE_S
    while is_locked(run.scratch) and time.monotonic() < deadline:
        time.sleep(0.1)


def _where_to_look(run: RunStore) -> str:
    """What to do about a run whose driver failed: its log says why, unless the log's own disk is full."""
    trial = run.scratch / f".{LOG}.{os.getpid()}.part"
    try:
        trial.write_bytes(bytes(4096))
    except OSError as error:
        return f"no space is left below {run.scratch} ({error.strerror}); free some, and run the same command"
    finally:
        with suppress(OSError):
            trial.unlink(missing_ok=True)
    return f"see {run.scratch / LOG}"


def _show_log(run: RunStore, console: Console, num_lines: int = 15) -> None:
    log = run.scratch / LOG
    lines = log.read_text("utf-8", errors="replace").splitlines() if log.exists() else []
    for line in [line for line in lines if line.strip()][-num_lines:]:
        console.print(f"  {line}", style="dim", markup=False, highlight=False)
