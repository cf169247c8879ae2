"""What is made of a message before it is shown or stored: no login, no control character, no page-long line."""

from __future__ import annotations

import errno
import re
from typing import Any

import pytest

from spin_components.errors import MAX_LINE, DataError, SpinError, clean
from spin_pipeline import cli


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("at https://user:key@host/v1, x", "at https://***@host/v1, x"),
        ("at 'https://token@host/v1'", "at 'https://***@host/v1'"),
        ("s3://KEY:a/b+c@bucket/x", "s3://***@bucket/x"),
        ("postgres://u:p@ss@host/db", "postgres://***@host/db"),
        ("hf://org:key@main/x", "hf://***@main/x"),
        ("http://a:b@c and http://d:e@f", "http://***@c and http://***@f"),
    ],
)
def test_a_login_is_not_shown(message: str, shown: str) -> None:
    assert str(SpinError(message)) == shown


@pytest.mark.parametrize(
    "message",
    [
        "http://127.0.0.1:9000/bucket/name@2 is busy",
        "hf://org/name@main",
        "s3://bucket/a@b",
        "file:///home/me@work/run",
        "ask someone@example.org, at http://host:80",
        "a line\n  and another [bold]one[/bold]\n",
        "é 漢 …",
    ],
)
def test_other_text_is_shown_as_it_is(message: str) -> None:
    assert str(SpinError(message)) == message


def test_control_characters_become_visible() -> None:
    assert clean("\x1b[2Ja\x00\x07\udcff\r") == r"\x1b[2Ja\x00\x07\udcff\r"


def test_the_middle_of_a_long_line_is_left_out() -> None:
    message = str(DataError("begin " + "x" * (20 << 20) + " https://u:key@h end; do this\nnext"))
    first, second = message.splitlines()
    assert first.startswith("begin xxx")
    assert first.endswith("https://***@h end; do this")
    assert "characters left out" in first
    assert len(first) <= MAX_LINE
    assert second == "next"
    assert clean("x" * MAX_LINE) == "x" * MAX_LINE


def test_an_error_keeps_what_is_no_text() -> None:
    assert SpinError("a", 3).args == ("a", 3)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), r"OSError: '/a/b': No space left.*free some space"),
        (OSError(errno.EROFS, "Read-only file system", "/a"), r"OSError: '/a': Read-only file.*can be written to"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/a"),
            r"PermissionError: '/a': Permission denied; correct",
        ),
        (OSError("odd"), r"OSError: odd; check the path"),
    ],
)
def test_an_error_of_the_system_is_one_line(
    error: OSError, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(run_uri: str) -> Any:
        raise error

    monkeypatch.setattr("spin_pipeline.runs.status.read_status", fail)
    assert cli.main(["status", "anywhere"]) == 1
    written = capsys.readouterr().err
    assert written.count("\n") == 1
    assert re.search(f"spin-pipeline: {line}", written)
