from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.started import started

PIPELINE = """
import os, sys
from kfp import dsl, local
from kfp.local import subprocess_task_handler
from spin_pipeline.local.driver import run_task

@dsl.component(install_kfp_package=False)
def parent_of_task(how: str) -> int:
    import logging, os, signal, sys
    from spin_components.runtime.process import configure_logging
    configure_logging()
    logging.info("as in a step")
    os.write(2, b"the component is at work\\n")
    if how == "refused":
        sys.exit(2)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getppid()

@dsl.pipeline
def tasks(how: str) -> None:
    with dsl.ParallelFor([1, 2], parallelism=1):
        parent_of_task(how="done").set_caching_options(False)
    parent_of_task(how=how).set_caching_options(False)

sys.stdout.reconfigure(line_buffering=True)
subprocess_task_handler.run_local_subprocess = run_task
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1], workspace_root=sys.argv[1] + "/workspace")
print("pid", os.getpid())
tasks(how=sys.argv[2])
"""


def run(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    script = folder / "pipeline.py"
    script.write_text(PIPELINE, encoding="utf-8")
    command = [sys.executable, str(script), str(folder / "outputs"), how]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_kfp_runs_its_tasks_in_forks_of_the_driver(tmp_path: Path) -> None:
    ended = run(tmp_path, "done")
    assert ended.returncode == 0, ended.stderr
    pid = next(line for line in ended.stdout.splitlines() if line.startswith("pid ")).removeprefix("pid ")
    assert ended.stdout.count(f"Output: {pid}\n") == 3
    assert ended.stderr.count("the component is at work\n") == 3
    assert ended.stderr.count("INFO as in a step\n") == 3


@pytest.mark.parametrize(
    ("how", "message"), [("refused", ""), ("killed", "ended by signal 9 (killed, or out of memory)")]
)
def test_a_task_that_fails_fails_the_pipeline(tmp_path: Path, how: str, message: str) -> None:
    ended = run(tmp_path, how)
    assert ended.returncode == 1
    assert message in ended.stderr
    assert "RuntimeError" in ended.stderr
    assert "parent-of-task" in ended.stderr


@pytest.mark.timeout(60)
def test_the_driver_ends_with_the_process_that_started_it() -> None:
    # the pid is above the largest that Linux gives: the parent has ended before the driver's first look
    command = [sys.executable, "-m", "spin_pipeline.local.driver", str(2**22 + 1)]
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.read() == b""  # its settings never come
        assert driver.wait() == -signal.SIGKILL
