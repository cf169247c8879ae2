from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from spin_components.errors import ConfigError
from spin_components.runtime.process import ATTEMPT, step_of
from spin_components.runtime.signals import Interrupted
from support.started import started

FORKED = """
import sys, time
from spin_components.runtime.process import ending, exit_code_of, fork
if (child := fork()) == 0:
    with ending():
        print("forked", flush=True)
        time.sleep(600)
exit_code_of(child)
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_step_knows_its_attempt_and_what_comes_after_it_does_not() -> None:
    with step_of("attempt-1"):
        assert os.environ[ATTEMPT] == "attempt-1"
    assert ATTEMPT not in os.environ


def test_a_spin_error_is_its_exit_code_with_its_message_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, step_of("attempt-1"):
        raise ConfigError("run.uri is empty")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "ConfigError: run.uri is empty\n"
    assert ATTEMPT not in os.environ


def test_an_error_of_another_kind_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="no number"), step_of("attempt-1"):
        raise ValueError("no number")


def test_a_signal_is_the_exit_code_that_a_shell_gives_it() -> None:
    with pytest.raises(SystemExit) as caught, step_of("attempt-1"):
        raise Interrupted(signal.SIGTERM)
    assert caught.value.code == 128 + 15


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("pass", 0),
        ("sys.exit()", 0),
        ("sys.exit(3)", 3),
        ("sys.exit('what is wrong')", 1),
        ("raise ValueError('no number')", 1),
    ],
)
def test_a_forked_process_ends_with_its_block(body: str, code: int) -> None:
    ended = python(
        "import sys; from spin_components.runtime.process import ending, exit_code_of, fork\n"
        f"if (child := fork()) == 0:\n    with ending():\n        print('forked')\n        {body}\n"
        "print(exit_code_of(child))"
    )
    assert ended.stdout == f"forked\n{code}\n"


@pytest.mark.timeout(60)
def test_a_forked_process_ends_with_its_parent() -> None:
    with started([sys.executable, "-c", FORKED], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "forked\n"
        parent.kill()
        assert parent.stdout.read() == ""  # returns at the end of the last process that holds it
