from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clock import Clock
from spin_components.errors import BusyError
from spin_components.store import lock
from spin_components.store.lock import is_locked, locked

HOLD = (
    "import sys; from pathlib import Path; from spin_components.store.lock import locked\n"
    "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


@contextmanager
def holder(root: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run until its input ends or it is killed."""
    command = [sys.executable, "-c", HOLD, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_missing_run_is_not_locked(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "absent")
    assert not is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_locked_as_long_as_the_block_lasts(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        assert is_locked(tmp_path / "run")
    assert not is_locked(tmp_path / "run")
    with locked(tmp_path / "run"):
        assert is_locked(tmp_path / "run")


def test_checking_does_not_take_the_lock(tmp_path: Path) -> None:
    with locked(tmp_path):
        pass
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert is_locked(tmp_path)
        assert is_locked(tmp_path)


def test_other_runs_are_not_locked(tmp_path: Path) -> None:
    with locked(tmp_path / "1"), locked(tmp_path / "2"):
        assert not is_locked(tmp_path)


def test_an_exception_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="on the way"), locked(tmp_path):
        raise RuntimeError("on the way")
    assert not is_locked(tmp_path)


def test_a_second_process_is_refused_while_the_first_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "time", Clock())
    with (
        holder(tmp_path),
        pytest.raises(
            BusyError, match=r"another runner is at work on this run, on this machine \(.*\); wait for it, end it, or"
        ),
        locked(tmp_path),
    ):
        raise AssertionError("both hold the run")


def test_killing_the_holder_releases_the_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        assert is_locked(tmp_path)
        process.kill()
        process.wait()
        assert not is_locked(tmp_path)
        with locked(tmp_path):
            assert is_locked(tmp_path)


def test_the_lock_lasts_as_long_as_a_child_that_inherits_it(tmp_path: Path) -> None:
    with locked(tmp_path) as descriptor:
        command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(descriptor,))
    with child:
        assert is_locked(tmp_path)
        child.kill()
        child.wait()
    assert not is_locked(tmp_path)


def test_a_second_runner_waits_a_little_for_the_first_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with holder(tmp_path) as process:

        def end() -> None:
            process.kill()
            process.wait()

        monkeypatch.setattr(lock, "time", Clock(on_sleep=end))
        with locked(tmp_path):
            assert process.returncode is not None
