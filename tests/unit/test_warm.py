from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spin_components.process import WARM_SERVER, perform
from spin_components.store.digests import digest_json

PERFORM = (
    "import json, sys; from spin_components.process import perform\n"
    "sys.stdout.write(perform(sys.argv[1], 'attempt', **json.loads(sys.argv[2])))"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a warm server that runs beside these tests."""
    address = str(tmp_path_factory.mktemp("warm") / "socket")
    command = [sys.executable, "-m", "spin_components.warm", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield address
        process.kill()


@pytest.fixture
def warm(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, with this process told of it."""
    monkeypatch.setenv(WARM_SERVER, server)


def caller(target: str, arguments: str) -> subprocess.Popen[str]:
    """Another process that performs a step."""
    command = [sys.executable, "-c", PERFORM, target, arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_without_a_server_a_step_runs_in_this_process() -> None:
    # the first four bytes of sha256("7")
    assert perform("algorithm.order:derive_seed", "attempt", seed=7) == str(0x7902699B % 2**31)
    assert "SPIN_ATTEMPT" not in os.environ, "what comes after the step would pass for a part of the attempt"


@pytest.mark.usefixtures("warm")
def test_the_result_comes_back() -> None:
    assert perform("algorithm.order:derive_seed", "attempt", seed=7) == str(0x7902699B % 2**31)


@pytest.mark.usefixtures("warm")
def test_a_large_result_comes_back_whole() -> None:
    numbers = perform("algorithm.order:permutation", "attempt", num=100_000, seed=0)
    assert len(numbers) > 600_000
    assert sorted(int(number) for number in numbers.strip("[]").split(", ")) == list(range(100_000))


@pytest.mark.usefixtures("warm")
def test_large_arguments_arrive_whole() -> None:
    values = [[-1000.0 - place, 1.0] for place in range(50_000)]
    assert perform("store.digests:digest_json", "attempt", value=values) == digest_json(values)


@pytest.mark.usefixtures("warm")
def test_a_step_runs_in_the_callers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert perform("store.addresses:local_path", "attempt", uri="a/b", what="run.uri") == str(tmp_path / "a" / "b")


@pytest.mark.usefixtures("warm")
def test_a_spin_error_is_its_exit_code_with_its_message_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        perform("store.addresses:local_path", "attempt", uri="s3://bucket", what="run.uri")
    assert caught.value.code == 2
    assert "ConfigError: run.uri = 's3://bucket': scheme 's3' is not supported" in capfd.readouterr().err


@pytest.mark.usefixtures("warm")
def test_an_error_of_another_kind_is_exit_code_1_with_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        perform("settings:parse_duration", "attempt", text="an hour")
    assert caught.value.code == 1
    error = capfd.readouterr().err
    assert "Traceback" in error
    assert "ValueError: 'an hour' is not a time" in error


@pytest.mark.usefixtures("warm")
def test_each_step_is_a_process_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with pytest.raises(SystemExit):
            perform("process:end_process_group", "attempt")  # kills the process that works, and no other
    assert "ended without an answer" in capfd.readouterr().err
    assert perform("algorithm.order:derive_seed", "attempt", seed=7) == str(0x7902699B % 2**31)


@pytest.mark.usefixtures("warm")
def test_steps_at_the_same_time_each_get_their_own_answer() -> None:
    callers = [caller("algorithm.order:permutation", f'{{"num": {num}, "seed": 0}}') for num in (1, 2, 3)]
    answers = [process.communicate()[0] for process in callers]
    assert [len(answer.split(",")) for answer in answers] == [1, 2, 3]


@pytest.mark.usefixtures("warm")
def test_the_end_of_the_caller_ends_the_step(tmp_path: Path) -> None:
    # the step is a server of its own, which says "ready" on the caller's output and would go on for ever
    process = caller("warm:serve", f'{{"address": "{tmp_path / "s"}"}}')
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
        assert process.stdout.read() == ""  # returns at the end of the last process that holds it


def test_the_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    # a process in between starts a server, says its id, and ends; the server's output is cut when it has ended too
    start = (
        "import subprocess, sys\n"
        "server = subprocess.Popen([sys.executable, '-m', 'spin_components.warm', sys.argv[1]])\n"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", start, str(tmp_path / "s")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        parent.kill()
        assert parent.stdout.read() == ""  # returns at the end of the last process that holds it


def test_without_anyone_at_the_address_the_step_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WARM_SERVER, os.fspath(tmp_path / "nobody"))
    with pytest.raises(OSError, match="No such file"):
        perform("algorithm.order:derive_seed", "attempt", seed=7)
