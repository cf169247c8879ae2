"""Every input of the corpus ends in its message and exit code: one line, short, without a key, without a traceback."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from security.bad_data import BAD_DATA
from security.bad_inputs import SECRET, BadInput
from security.bad_models import BAD_MODELS
from security.bad_runs import BAD_RUNS
from security.bad_settings import BAD_SETTINGS
from security.bad_tasks import BAD_TASKS
from spin_components.errors import MAX_LINE, SpinError
from spin_pipeline.cli import main

CORPUS = [*BAD_SETTINGS, *BAD_DATA, *BAD_MODELS, *BAD_TASKS, *BAD_RUNS]


def outcome(case: BadInput, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and message; whatever is no error of ours fails the test with its traceback."""
    try:
        arguments = case.use(folder)
    except SpinError as error:
        return error.exit_code, f"{type(error).__name__}: {error}"
    assert arguments, "nothing was refused"
    capsys.readouterr()
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = int(str(stop.code))
    printed = capsys.readouterr()
    return code, printed.err + printed.out


@pytest.mark.parametrize("case", CORPUS, ids=str)
def test_a_bad_input_ends_in_its_message(case: BadInput, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, message = outcome(case, tmp_path, capsys)
    assert re.search(case.message, message, re.DOTALL), message
    assert code == case.exit_code
    assert "Traceback" not in message
    assert SECRET not in message
    assert all(len(line) <= MAX_LINE + 100 for line in message.splitlines())
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", message), (
        "a terminal or a log would take it for more"
    )


def test_the_corpus_is_large_and_its_names_are_its_own() -> None:
    assert len(CORPUS) >= 150
    names = [case.name for case in CORPUS]
    assert [name for name in names if names.count(name) > 1] == []
