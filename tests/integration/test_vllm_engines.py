"""Several real vLLM engines on the CPU at once share the blocks of a shard, each on a core of its own where it can."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spin_components.data.shards import Pair, read_rows
from spin_components.generate.step import generate_shard
from spin_components.memory import processes
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import read_manifest
from support.playing import begin, hardware
from support.small import small_settings
from support.started import started

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="pins engines to cores, on Linux")

NUM_BLOCKS = 4
_STEP = """
import sys
from spin_components.generate.step import generate_shard
from spin_components.memory import processes
from spin_components.settings.settings import Settings
from support.playing import hardware

if __name__ == "__main__":  # vLLM's workers import this file
    processes.START_S = 0.0
    settings = Settings.model_validate_json(sys.stdin.read())
    generate_shard(settings.run.uri, 0, 0, sys.argv[1], hardware(settings))
"""


@pytest.fixture
def two_cores() -> Iterator[None]:
    before = os.sched_getaffinity(0)  # one core, in a worker of several
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    yield
    os.sched_setaffinity(0, before)


@contextmanager
def on_one_core() -> Iterator[None]:
    """Restrict this process: with more threads, sums are rounded otherwise."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder with a short name: vLLM's sockets are below `TMPDIR`, and their paths have at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="spin-") as name:
        yield Path(name)


def settings_of(folder: Path, tiny_llama: Path, question_file: Path, engines: int) -> Settings:
    """Eleven prompts in blocks of two and three."""
    return small_settings(
        folder,
        tiny_llama,
        question_file,
        data={"max_train_records": 11},
        generation={"engine": "vllm", "block_size": 4, "stop": ["e th"]},
        validation={"num_samples": 0},
        hardware={"device": "cpu", "threads": 1, "ranks": engines},
    )


def generated(run: LocalRun) -> list[Pair]:
    return read_rows(run.path(layout.generations(0, 0)), Pair)


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, question_file: Path) -> list[Pair]:
    """The pairs of one engine on one core."""
    settings = settings_of(tmp_path_factory.mktemp("one") / "run", tiny_llama, question_file, 1)
    reference = begin(settings)
    with on_one_core():
        generate_shard(settings.run.uri, 0, 0, reference, hardware(settings))
    return generated(LocalRun(Path(settings.run.uri)))


@pytest.mark.usefixtures("two_cores")
def test_two_engines_at_once_give_the_answers_of_one(
    by_one: list[Pair], tiny_llama: Path, question_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "START_S", 0.0)
    settings = settings_of(tmp_path / "run", tiny_llama, question_file, 2)
    generate_shard(settings.run.uri, 0, 0, begin(settings), hardware(settings))
    run = LocalRun(tmp_path / "run")
    facts = read_manifest(run, layout.manifest_of(layout.generations(0, 0))).facts
    assert (facts["engine"], facts["num_blocks"], facts["num_engines"]) == ("vllm", NUM_BLOCKS, 2)
    assert generated(run) == by_one, "tokens, ends and log-probabilities"


@pytest.mark.usefixtures("two_cores")
def test_a_shard_that_was_killed_between_blocks_gets_the_same_answers(
    by_one: list[Pair], tiny_llama: Path, question_file: Path, tmp_path: Path, scratch: Path
) -> None:
    settings = settings_of(tmp_path / "run", tiny_llama, question_file, 2)
    reference, run = begin(settings), LocalRun(tmp_path / "run")
    (tmp_path / "step.py").write_text(_STEP, encoding="utf-8")
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with started(
        [sys.executable, str(tmp_path / "step.py"), reference], stdin=subprocess.PIPE, text=True, env=environment
    ) as step:
        assert step.stdin is not None
        step.stdin.write(settings.model_dump_json(include=set(Settings.model_fields)))
        step.stdin.close()
        while num_taken(scratch) < 3 and step.poll() is None:  # two are taken at once: one has been answered
            time.sleep(0.05)
        step.kill()
    assert step.returncode == -signal.SIGKILL
    assert not run.exists(layout.manifest_of(layout.generations(0, 0)))
    while processes_with(scratch):  # engines end with the step, which cannot end them
        time.sleep(0.1)
    one = settings.model_copy(update={"hardware": settings.hardware.model_copy(update={"ranks": 1})})
    with on_one_core():
        generate_shard(settings.run.uri, 0, 0, reference, hardware(one))
    assert generated(run) == by_one


def num_taken(scratch: Path) -> int:
    """Number of blocks that the engines have begun."""
    return sum(path.stat().st_size for path in scratch.glob("spin-ranks-*/taken"))


def processes_with(scratch: Path) -> list[str]:
    """Processes that were started with this folder as `TMPDIR`."""
    variable, found = f"TMPDIR={scratch}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if variable in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
        except OSError:  # it has ended
            continue
    return found
