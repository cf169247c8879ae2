"""Fixtures of the fault tests: the undisturbed run, and the counts of outcomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from faults.attempts import start_fork_server
from faults.file_ground import FileGround
from faults.ground import Ground, Tally
from faults.plans import Fault

_WRONG = "ENDED WRONG"
_RIGHT = "ended as it must"
_NO_FAULT = (
    "test_object_storage_and_files_give_the_same_losses_and_digests",
    "test_no_secret_is_written_anywhere",
    "test_a_run_on_a_read_only_disk_is_read",
)
"""Tests here that inject nothing."""
_COUNTS: Counter[tuple[str, str]] = Counter()


@pytest.fixture(scope="session")
def fork_server() -> None:
    """The process that attempts are forked from."""
    start_fork_server()


@pytest.fixture(scope="session")
def file_ground(
    tmp_path_factory: pytest.TempPathFactory, fork_server: None, tiny_llama: Path, question_file: Path
) -> FileGround:
    """A folder for runs, after one undisturbed run."""
    ground = FileGround(tmp_path_factory.mktemp("files"), tiny_llama, question_file)
    ground.play_undisturbed()
    return ground


@pytest.fixture(scope="session")
def ground(
    tmp_path_factory: pytest.TempPathFactory, fork_server: None, tiny_llama: Path, question_file: Path
) -> Iterator[Ground]:
    """The server and the proxy, after one undisturbed run."""
    with closing(Ground(tmp_path_factory.mktemp("faults"), tiny_llama, question_file)) as ground:
        ground.play_undisturbed()
        yield ground


@pytest.fixture(scope="module")
def one_epoch_ground(
    tmp_path_factory: pytest.TempPathFactory, fork_server: None, tiny_llama: Path, question_file: Path
) -> Iterator[Ground]:
    """The same for runs of one epoch."""
    with closing(Ground(tmp_path_factory.mktemp("faults"), tiny_llama, question_file, num_epochs=1)) as ground:
        ground.play_undisturbed()
        yield ground


@pytest.fixture
def tally() -> Tally:
    """Counts a fault with an expected outcome."""

    def count(group: str, outcome: str) -> None:
        _COUNTS[group, outcome] += 1

    return count


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Count faults with an unexpected outcome, and the test itself as one fault where it counts none."""
    report = yield
    if item.originalname in _NO_FAULT:
        return report
    drawn = item.callspec.params.get("drawn") if hasattr(item, "callspec") else None
    group = drawn.group if isinstance(drawn, Fault) else item.originalname.removeprefix("test_").replace("_", " ")
    if report.failed:
        _COUNTS[group, _WRONG] += 1
    elif report.passed and report.when == "call" and "tally" not in item.fixturenames:
        _COUNTS[group, _RIGHT] += 1
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts."""
    if not _COUNTS:
        return
    terminalreporter.section("faults")
    width = max(len(group) for group, _ in _COUNTS)
    for (group, outcome), number in sorted(_COUNTS.items()):
        terminalreporter.write_line(f"{number:4d}  {group:{width}}  {outcome}")
    wrong = sum(number for (_, outcome), number in _COUNTS.items() if outcome == _WRONG)
    terminalreporter.write_line(f"{sum(_COUNTS.values()):4d}  faults injected, {wrong or 'none'} ended wrong")
