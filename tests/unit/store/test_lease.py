from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clock import Clock
from spin_components.errors import BusyError, ConfigError, SpinError
from spin_components.store import layout, lease_holder
from spin_components.store import lease as lease_module
from spin_components.store.base import RunStore
from spin_components.store.lease import check_free, read_lease
from spin_components.store.lease_holder import LeaseHolder
from spin_components.store.local import LocalRun
from spin_components.store.open import open_run
from spin_components.store.processes import this_host
from support.s3_server import BUCKET, S3Server


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path, s3: S3Server) -> Iterator[RunStore]:
    """A run without a lease, in a folder and in a bucket."""
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    with open_run(str(tmp_path / "run") if request.param == "local" else f"s3://{BUCKET}/leases/{name}") as run:
        yield run


@contextmanager
def holding(run: RunStore, owner: str) -> Iterator[LeaseHolder]:
    holder = LeaseHolder(run, owner, take_over=True)
    try:
        yield holder
    finally:
        holder.close()


def write_lease(run: RunStore, **fields: object) -> None:
    """Write a lease of a process on another machine."""
    lease = {"owner": "a", "host": "pod-7/boot", "process": "7:7", "renewed_at": time.time(), "duration_s": 300.0}
    run.write_json(layout.LEASE, {**lease, **fields})


def test_a_run_without_a_lease_is_free(run: RunStore) -> None:
    assert read_lease(run) is None
    check_free(run)
    check_free(run, "a")


def test_another_attempt_is_refused_while_the_lease_is_valid(run: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    for module in (lease_module, lease_holder):
        monkeypatch.setattr(module, "time", clock)
    says = (
        rf"another runner is at work on {re.escape(run.uri)}: attempt a on [^/]+, "
        r"which last renewed its lease 7 s ago\."
    )
    with holding(run, "a"):
        clock.now += 7.0
        for owner in ("b", ""):
            with pytest.raises(BusyError, match=rf"{says} Wait for it, end it, or .* its lease expires in 293 s"):
                check_free(run, owner)
        with pytest.raises(BusyError, match=says):
            LeaseHolder(run, "b", take_over=True)
        lease = read_lease(run)
        assert lease is not None
        assert (lease.owner, lease.host, lease.duration_s) == ("a", this_host(), 300.0)
        assert lease.remaining_s == 293.0


def test_the_steps_of_an_attempt_share_its_lease(run: RunStore) -> None:
    with holding(run, "a"), holding(run, "a") as second:
        check_free(run, "a")
        second.claim()


def test_a_released_lease_can_be_taken_over(run: RunStore) -> None:
    with holding(run, "a") as holder:
        holder.release()
        check_free(run, "b")
    with holding(run, "b"):
        holder.release()  # releases only its own lease
        with pytest.raises(BusyError):
            check_free(run, "c")


def backdate(run: RunStore, s3: S3Server, age_s: float) -> None:
    """Move the time of the last renewal back, by the storage's clock."""
    if isinstance(run, LocalRun):
        os.utime(run.path(layout.LEASE), (time.time() - age_s, time.time() - age_s))
    else:
        s3.backdate(run.uri_of(layout.LEASE).removeprefix(f"s3://{BUCKET}/"), age_s)


@pytest.mark.parametrize("skew_s", [-600.0, 0.0, 600.0])
def test_a_lease_stays_valid_until_it_expires_whatever_the_clock_of_its_holder_shows(
    run: RunStore, s3: S3Server, skew_s: float
) -> None:
    # an S3 server's times are whole seconds, so an age may be one second less
    write_lease(run, renewed_at=time.time() + skew_s, duration_s=300.0)
    backdate(run, s3, 100.0)
    with pytest.raises(
        BusyError, match=r"attempt a on pod-7, which last renewed its lease \d+ s ago.*expires in 20\d s"
    ):
        check_free(run, "b")
    backdate(run, s3, 290.0)
    with pytest.raises(BusyError, match=r"expires in 1?\d s"):
        check_free(run, "b")
    backdate(run, s3, 302.0)
    check_free(run, "b")
    with holding(run, "b"):
        pass
    lease = read_lease(run)
    assert lease is not None
    assert lease.owner == "b"


def test_the_lease_is_renewed_while_the_holder_is_open(run: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIN_LEASE_S", "0.8")
    with holding(run, "a"):
        first = read_lease(run)
        assert first is not None
        while (later := read_lease(run)) and later.renewed_at < first.renewed_at + 2 * first.duration_s:
            time.sleep(0.05)
        assert later is not None
        assert later.owner == "a"


@pytest.mark.parametrize("run", ["s3"], indirect=True)
def test_an_attempt_that_lost_the_lease_is_refused(
    run: RunStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SPIN_LEASE_S", "0.4")
    with holding(run, "a") as holder:
        with caplog.at_level(logging.ERROR):
            while "this attempt has lost its lease" not in caplog.text:
                write_lease(run, owner="b")  # again, where the holder was between its look and its renewal
                time.sleep(0.2)
        with pytest.raises(BusyError, match="attempt b has taken"):
            holder.claim()
        holder.release()
    lease = read_lease(run)
    assert lease is not None
    assert (lease.owner, lease.duration_s) == ("b", 300.0)  # neither renewed nor released by the attempt that lost it


def test_the_lease_survives_a_short_outage_of_storage(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SPIN_LEASE_S", "1")
    monkeypatch.setenv("SPIN_STORAGE_DEADLINE_S", "0.2")
    server = S3Server(tmp_path / "s3")
    monkeypatch.setenv("S3_ENDPOINT", server.endpoint)
    try:
        with open_run(f"s3://{BUCKET}/run") as run, holding(run, "a") as holder:
            server.kill()
            while "the lease could not be renewed" not in caplog.text:
                time.sleep(0.05)
            server.start()
            back = time.time()
            while (lease := read_lease(run)) and lease.renewed_at < back:
                time.sleep(0.05)
            holder.claim()
    finally:
        server.kill()


HOLD = """
import sys; from spin_components.store.lease_holder import LeaseHolder; from spin_components.store.open import open_run
holder = LeaseHolder(open_run(sys.argv[1]), "a", take_over=True)
print("held", flush=True)
sys.stdin.read()
"""


def test_the_lease_of_a_dead_local_process_is_free(run: RunStore) -> None:
    command = [sys.executable, "-c", HOLD, run.uri]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BusyError):
            check_free(run, "b")
        process.kill()
        process.wait()
        check_free(run, "b")


def test_between_two_steps_the_runner_holds_the_lease(run: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as runner:
        assert runner.stdout is not None
        runner.stdout.readline()
        monkeypatch.setenv("SPIN_RUNNER", str(runner.pid))
        with holding(run, "first"):
            pass
        with pytest.raises(BusyError, match="attempt first"):
            check_free(run)
        runner.kill()
    check_free(run)


def test_a_reused_pid_is_another_process(tmp_path: Path) -> None:
    with open_run(str(tmp_path)) as run, holding(run, "a"):
        lease = read_lease(run)
        assert lease is not None
        pid, _, started = lease.process.partition(":")
        write_lease(run, host=this_host(), process=f"{pid}:{started}")
        with pytest.raises(BusyError):
            check_free(run, "b")
        write_lease(run, host=this_host(), process=f"{pid}:{int(started) - 1}")
        check_free(run, "b")
        write_lease(run, host="pod-7/boot", process=f"{pid}:{int(started) - 1}")
        with pytest.raises(BusyError):  # whether it runs there is unknown here
            check_free(run, "b")


@pytest.mark.parametrize(
    "content",
    [b"", b'{"owner": ', b"[]", b'{"owner": "a"}', json.dumps({"renewed_at": "x"}).encode()],
    ids=["empty", "cut", "list", "incomplete", "typed"],
)
def test_a_damaged_lease_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    with open_run(str(tmp_path)) as run:
        run.write(layout.LEASE, content)
        with pytest.raises(SpinError, match=r"lease\.json"):
            check_free(run, "b")


@pytest.mark.parametrize("text", ["soon", "-1", "0", "nan"])
def test_a_malformed_duration_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SPIN_LEASE_S", text)
    with open_run(str(tmp_path)) as run, pytest.raises(ConfigError, match=f"SPIN_LEASE_S = '{text}'"):
        LeaseHolder(run, "a", take_over=True).close()
