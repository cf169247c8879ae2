"""Places that cannot be written: commands on a run there end in one line that names the place, and change nothing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.disks import small_disk
from faults.ground import Tally
from spin_components.store.digests import digest_tree
from spin_components.store.local import LocalRun
from spin_pipeline.cli import main
from spin_pipeline.local.run import LOG, _where_to_look


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory, finished: LocalRun) -> Iterator[Path]:
    """A disk that holds a finished run, and can be written no more."""
    folder = tmp_path_factory.mktemp("disk")
    with small_disk(folder, 64 << 10):
        shutil.copytree(finished.root, folder / "run")
        (folder / "run" / "unknown.bin").write_bytes(b"x")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder


def test_a_run_on_a_read_only_disk_is_read(disk: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = str(disk / "run")
    assert main(["status", run]) == 0
    assert main(["report", run, "-o", str(tmp_path / "page.html")]) == 0
    assert main(["gc", run, "--dry-run"]) == 0
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["report", "RUN"], ["report", "RUN", "-o", "DISK/page.html"], ["export", "FINISHED", "DISK/model"], ["gc", "RUN"]],
    ids=" ".join,
)
def test_what_would_write_to_a_read_only_disk_says_so(
    disk: Path, finished: LocalRun, arguments: list[str], capsys: pytest.CaptureFixture[str], tally: Tally
) -> None:
    before = digest_tree(disk / "run")
    names = {"RUN": str(disk / "run"), "FINISHED": finished.uri}
    filled = [names.get(each, each).replace("DISK", str(disk)) for each in arguments]
    assert main(filled) in (1, 2)
    message = capsys.readouterr().err
    assert "Read-only file system" in message
    assert message.count("\n") == 1
    assert digest_tree(disk / "run") == before
    tally("read-only disk", "named in one line")


@pytest.mark.parametrize("arguments", [["report", "RUN", "-o", "/dev/full"], ["export", "RUN", "DISK/model"]], ids=str)
def test_what_fills_a_disk_says_so(
    arguments: list[str], finished: LocalRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], tally: Tally
) -> None:
    with small_disk(tmp_path / "disk", 100):
        filled = [each.replace("RUN", finished.uri).replace("DISK", str(tmp_path / "disk")) for each in arguments]
        assert main(filled) in (1, 2)
        message = capsys.readouterr().err
        assert "No space left on device" in message or "no space is left" in message
        assert message.count("\n") == 1
        assert not (tmp_path / "disk" / "model").exists() or "config.json" not in digest_tree(tmp_path / "disk")
    tally("full disk (commands)", "named in one line")


def test_the_log_on_a_full_disk_is_not_pointed_to(tmp_path: Path, tally: Tally) -> None:
    with small_disk(tmp_path / "disk", 64):
        run = LocalRun(tmp_path / "disk")
        assert _where_to_look(run) == f"see {run.root / LOG}"
        with pytest.raises(OSError, match="No space left"), (run.root / LOG).open("wb", buffering=0) as log:
            while log.write(bytes(4096)):
                pass
        assert _where_to_look(run).startswith(f"no space is left below {run.root} (No space left on device); free some")
        assert [path.name for path in run.root.iterdir()] == [LOG]
    tally("full disk (commands)", "named in one line")
