"""What tests start in forks of a warm Python behaves like a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.started import started

pytestmark = [
    pytest.mark.usefixtures("warm_python"),
    pytest.mark.skipif(sys.platform != "linux", reason="a new Python is started there"),
]

_PROGRAM = """
import os, sys, time
print(sys.argv[1:], sys.stdin.read(), os.environ["COLOUR"], os.getcwd(), "torch" in sys.modules)
print("to standard error", file=sys.stderr)
sys.exit(3)
"""


def test_a_program_has_the_callers_arguments_streams_variables_and_folder(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(_PROGRAM, encoding="utf-8")
    for name in (["program.py"], ["-m", "program"]):
        result = subprocess.run(
            [sys.executable, "-u", *name, "-a", "b"],
            input="read",
            env={"COLOUR": "blue"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 3
        assert result.stdout == f"['-a', 'b'] read blue {tmp_path} True\n"
        assert result.stderr == "to standard error\n"


def test_a_program_has_the_callers_open_files_and_paths(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("VALUE = 7", encoding="utf-8")
    with (tmp_path / "kept").open("wb") as kept:
        program = f"import os, sitecustomize; print(sitecustomize.VALUE); os.write({kept.fileno()}, b'written')"
        (tmp_path / "program.py").write_text(program, encoding="utf-8")
        result = subprocess.run(
            [sys.executable, "-m", "program"],
            pass_fds=(kept.fileno(),),
            env={"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"},
            stdout=subprocess.PIPE,
            check=True,
        )
    assert result.stdout == b"7\n"
    assert (tmp_path / "kept").read_bytes() == b"written"


def test_a_signal_reaches_the_program_and_its_end_the_caller(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import time; print(flush=True); time.sleep(3600)", encoding="utf-8")
    command = [sys.executable, str(tmp_path / "program.py")]
    with started(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert process.wait() == -signal.SIGTERM


def test_a_program_ends_with_its_caller(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import time; print(flush=True); time.sleep(3600)", encoding="utf-8")
    command = [sys.executable, str(tmp_path / "program.py")]
    with started(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        assert process.stdout.read() == b"", "the pipe is at its end once the program has none of it"


def test_other_command_lines_run_a_new_python() -> None:
    code = "import sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"
