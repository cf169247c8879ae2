"""What all tests share: a tiny model, a little data, settings over both, and a way to play them step by step."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tenacity
from hypothesis import settings as hypothesis_settings

from spin_components.machine import memory_bytes

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if os.access("/dev/shm", os.W_OK) and not os.statvfs("/dev/shm").f_flag & os.ST_NOEXEC:
    # runs sync each file that they write, which on a disk takes as long as the steps of a small run
    is_large = shutil.disk_usage("/dev/shm").free > 4 << 30 and memory_bytes()[1] > 12 << 30  # files there are memory
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm" if is_large else tempfile.gettempdir())

if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # its share of the cores, so that workers' threads do not spin
    cores = sorted(os.sched_getaffinity(0))
    share = cores[int(worker.removeprefix("gw")) % len(cores) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
    os.sched_setaffinity(0, share)

from clock import Clock
from spin_components.data.builtin import docstrings, make_tiny_llama
from spin_components.settings.settings import Settings
from spin_components.store.local import LocalRun
from support.kfp_server import KfpServer
from support.s3_server import S3Server
from support.small import small_settings
from support.warm_python import WarmPython
from support.warm_spin import WARM

# the same examples on every run: a suite that fails now and then is not believed
hypothesis_settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
hypothesis_settings.load_profile("fixed")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two-layer Llama of `tiny.toml`."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    make_tiny_llama(folder)
    return folder


@pytest.fixture(scope="session")
def question_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty questions with human answers, as prompt and response."""
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    lines = (json.dumps({"prompt": question, "response": answer}) for question, answer in docstrings(limit=40))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server that all tests share. Not to be killed."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.kill()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    """The shared server with an empty bucket, in this process's environment, and a cache of the test's own."""
    s3_server.empty()
    for name, value in {**s3_server.variables, "SPIN_CACHE_DIR": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def retry_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of requests that are tried again in this process; their pauses move it, and nothing else does."""
    clock = Clock()
    monkeypatch.setattr(tenacity, "time", clock)
    monkeypatch.setattr(tenacity.nap, "time", clock)
    return clock


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch, retry_clock: Clock) -> Iterator[KfpServer]:
    """A KFP API, and this process's environment pointing to it."""
    server = KfpServer()
    for name in ("KFP_TOKEN", "KFP_TOKEN_FILE", "KFP_NAMESPACE", "KF_PIPELINES_UI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "KFP_ENDPOINT": server.endpoint,
        "SPIN_KFP_POLL_S": "0.02",
    }.items():
        monkeypatch.setenv(name, value)
    yield server
    server.close()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, question_file: Path) -> LocalRun:
    """A run of two iterations; not to be written to."""
    from support.playing import play

    root = tmp_path_factory.mktemp("finished")
    settings = small_settings(
        root / "run",
        tiny_llama,
        question_file,
        data={"max_train_records": 16},
        spin={"max_iterations": 2},
        generation={"max_new_tokens": 8},
        selection={"save_top_k": 1},
    )
    return play(settings)


@pytest.fixture(scope="session")
def warm_server() -> Iterator[WarmPython]:
    """A process that has imported what ranks need, shared by all tests."""
    with closing(WarmPython()) as server:
        yield server


@pytest.fixture
def warm_python(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has torchrun and ranks start in forks of a process that has imported torch and DeepSpeed; on Linux."""
    if sys.platform == "linux":
        monkeypatch.setattr(sys, "executable", str(request.getfixturevalue("warm_server").executable))


@pytest.fixture
def warm_driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the driver of `warm_spin.SPIN` start in forks of a process that has imported what steps need; on Linux."""
    if sys.platform == "linux":
        monkeypatch.setenv(WARM, str(request.getfixturevalue("warm_server").executable))


@pytest.fixture
def patient_trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for trackers as long as they need: their libraries take a while to import on a busy machine."""
    monkeypatch.setattr("spin_components.tracking.trackers._TIMEOUT_S", 1e6)


@pytest.fixture
def make_settings(tiny_llama: Path, question_file: Path, tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a run that takes a few seconds; keyword arguments are section tables that override."""

    def make(**sections: dict[str, Any]) -> Settings:
        return small_settings(tmp_path / "run", tiny_llama, question_file, **sections)

    return make
