"""A run on this machine: the driver started, its events shown, its end judged by what lies in storage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import FrameType
from typing import Any

from rich.console import Console

from spin_components.errors import ConfigError
from spin_components.evaluate.packages import check_evaluation_packages
from spin_components.events import EventTail
from spin_components.lora.packages import check_lora_packages
from spin_components.prepare.checks import check_inputs
from spin_components.settings import Settings
from spin_components.store import layout
from spin_components.store.lease import check_free
from spin_components.store.run import RunStore, open_run
from spin_components.tracking.trackers import check_packages
from spin_pipeline.lock import is_locked, locked
from spin_pipeline.status import RunStatus, read_status
from spin_pipeline.watch.live import Display, open_display

_WAIT_S = 0.2
_GRACE_S = 3.0
LOG = "driver.log"


class _InterruptedError(Exception):
    """A signal asked this process to end."""


def run_local(settings: Settings, console: Console) -> RunStatus:
    """Run or resume a run, and return how it stands at the end.

    Raises:
        ConfigError, DataError, ModelError, StorageAccessError: something is wrong that can be seen before any work.
        BusyError: another runner is at work on it.
    """
    if not settings.run.uri:
        raise ConfigError("run.uri is empty; say where the run shall lie with --run-uri DIR")
    if settings.hardware.nodes > 1:
        raise ConfigError(
            f"hardware.nodes = {settings.hardware.nodes}, but this is one machine; "
            "set it to 1, or submit the run to a cluster"
        )
    run = open_run(settings.run.uri)
    settings = settings.model_copy(update={"run": settings.run.model_copy(update={"uri": run.uri})})
    run.probe()
    check_packages(settings.tracking)
    check_lora_packages(settings.lora)
    check_evaluation_packages(settings.evaluation)
    check_inputs(settings)
    log = run.scratch / LOG
    console.print(
        f"run {settings.run.name}: {run.uri} (everything steps print: {log})", highlight=False, soft_wrap=True
    )
    with locked(run.scratch) as lock:
        check_free(run)
        display = open_display(console, run.uri)
        code = _drive(settings, run, lock, EventTail(run, skip=not display.wants_history), display)
        if code > 0:
            check_free(run)  # another machine was first, between that look and the first step
    _wait_for_steps(run)
    status = read_status(run.uri) if run.exists(layout.ATTEMPT) else None
    if status is None or (status.state == "interrupted" and code > 0):
        _show_log(run, console)
        failure = {"step": "driver", "error": "RuntimeError", "message": f"see {log}", "exit_code": 1}
        blank: dict[str, Any] = {"iteration": None, "epoch": None, "step": 0, "consumed_samples": 0, "best": None}
        known = status.model_dump() if status else {"run_uri": run.uri, "iterations": [], "base": {}, **blank}
        return RunStatus.model_validate({**known, "state": "failed", "failure": failure})
    return status


def _drive(settings: Settings, run: RunStore, lock: int, tail: EventTail, display: Display) -> int:
    """Start the driver, tell what happens, wait; a signal ends it and all its children. Returns its exit code."""
    path = run.scratch / ".settings.json"
    path.write_text(settings.model_dump_json(include=set(Settings.model_fields)), encoding="utf-8")
    command = [sys.executable, "-m", "spin_pipeline.driver", str(path), str(lock)]
    # the current folder is kept off the path: KFP imports `docker`, which a folder of that name would stand in for
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    with (run.scratch / LOG).open("ab") as log:
        driver = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, pass_fds=(lock,), env=environment
        )
    previous = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        told = 0.0
        while driver.poll() is None:
            if time.monotonic() - told >= run.poll_s:
                display.show(tail.new())
                told = time.monotonic()
            time.sleep(_WAIT_S)
        display.show(tail.new())
        return driver.returncode
    except _InterruptedError:
        display.interrupted()
        return -signal.SIGTERM
    finally:
        for number in previous:
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave children behind
        display.close()
        _end(driver)
        for number, handler in previous.items():
            signal.signal(number, handler)
        path.unlink(missing_ok=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise _InterruptedError


def _end(driver: subprocess.Popen[bytes]) -> None:
    """End the driver's process group; the steps notice that their callers are gone and end themselves."""
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
    """Give steps whose runner was ended the moment they need to end themselves."""
    deadline = time.monotonic() + _GRACE_S
    while is_locked(run.scratch) and time.monotonic() < deadline:
        time.sleep(0.1)


def _show_log(run: RunStore, console: Console, num_lines: int = 15) -> None:
    log = run.scratch / LOG
    lines = log.read_text("utf-8", errors="replace").splitlines() if log.exists() else []
    for line in [line for line in lines if line.strip()][-num_lines:]:
        console.print(f"  {line}", style="dim", markup=False, highlight=False)
