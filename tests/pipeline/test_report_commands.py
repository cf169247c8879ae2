"""The commands `report` and `compare`, and the report that the checkpoint writes, without a browser."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from markupsafe import Markup

from spin_components.checkpoint.step import publish
from spin_components.record.events import read_events
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.train_epoch.step import train
from spin_components.validate.step import validate
from spin_pipeline.cli import main
from support.playing import begin, hardware, play_scores
from support.s3_server import BUCKET, S3Server


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["report", "{nowhere}"], "has nothing to report yet: there is no data/manifest.json"),
        (["compare", "{run}"], "compare: expected two or more different runs"),
        (["compare", "{run}", "{run}/"], "compare: expected two or more different runs"),
        (["compare", "{run}", "{nowhere}"], "has nothing to report yet"),
        (["report", "{run}", "-o", "{run}"], "cannot be written: Is a directory"),
    ],
)
def test_a_report_or_comparison_that_cannot_be_made_exits_with_code_2(
    finished: LocalRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], message: str
) -> None:
    arguments = [part.format(run=finished.uri, nowhere=tmp_path / "nowhere") for part in command]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_the_command_writes_the_same_report_as_the_last_checkpoint(
    finished: LocalRun, s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = finished.path(layout.REPORT).read_bytes()
    assert main(["report", finished.uri, "-o", str(tmp_path / "deep/er/report.html")]) == 0
    assert (tmp_path / "deep/er/report.html").read_bytes() == written
    # in object storage, the report is the same except for the address
    shutil.copytree(finished.root, s3.path("runs/copied"))
    uri = f"s3://{BUCKET}/runs/copied"
    s3.path(f"runs/copied/{layout.REPORT}").unlink()
    assert main(["report", uri]) == 0
    assert f"wrote {uri}/{layout.REPORT}" in capsys.readouterr().out
    copied = s3.path(f"runs/copied/{layout.REPORT}").read_text("utf-8")
    address = str(Markup.escape(finished.uri))
    assert copied.replace(uri, "RUN").replace(address, "RUN") == written.decode().replace(address, "RUN")


def test_gc_keeps_the_report(finished: LocalRun, tmp_path: Path) -> None:
    shutil.copytree(finished.root, tmp_path / "copy")
    assert main(["gc", str(tmp_path / "copy")]) == 0
    assert (tmp_path / "copy" / layout.REPORT).exists()


def test_a_report_that_cannot_be_built_is_a_warning_and_the_iteration_is_published(
    make_settings: Callable[..., Settings],
) -> None:
    settings = make_settings()
    run, machine = LocalRun(Path(settings.run.uri)), hardware(settings)
    reference = begin(settings)
    scores = play_scores(settings, 0, reference)
    policy = validate(run.uri, 0, 0, train(run.uri, 0, 0, reference, scores, machine), machine, reference)
    pairs = run.path(layout.generations(0, 0))  # read by the report, not by the checkpoint
    content = pairs.read_bytes()
    pairs.write_bytes(b"not what was written")
    publish(run.uri, 0, reference, policy, 1, settings.selection.model_dump(mode="json"))
    assert run.exists(layout.checkpoint(0))
    assert not run.exists(layout.REPORT)
    (warning,) = [event for event in read_events(run) if event["kind"] == "warning" and event["step"] == "checkpoint"]
    assert "the report could not be written (IntegrityError: " in warning["message"]
    # repeating the finished step with the restored file writes the report
    pairs.write_bytes(content)
    publish(run.uri, 0, reference, policy, 1, settings.selection.model_dump(mode="json"))
    assert b"Iteration 0" in (run.read(layout.REPORT) or b"")
