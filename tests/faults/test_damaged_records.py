"""A finished run with one damaged file: each command gives the right result or one clear line, and changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from faults.ground import Tally
from spin_components.store import layout
from spin_components.store.digests import FileDigest, digest_tree
from spin_components.store.local import LocalRun
from spin_pipeline.cli import main

DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "cut": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "garbled": lambda content: bytes(255 - byte for byte in content),
    "another record": lambda content: b'{"settings": [], "checksum": "0"}',
    "deleted": lambda content: None,
}
FILES = (
    layout.RUN,
    layout.ATTEMPT,
    layout.BEST,
    layout.DATA_MANIFEST,
    layout.checkpoint(1),
    layout.epoch_manifest(1, 0),
    f"{layout.epoch(1, 0)}/policy/config.json",
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, finished: LocalRun) -> dict[str, FileDigest]:
    """The model that the undamaged run exports."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    assert main(["export", finished.uri, str(folder), "--iteration", "1"]) == 0
    return dict(digest_tree(folder))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("key", FILES)
def test_a_damaged_file_is_named_or_does_not_matter(
    key: str,
    damage: str,
    finished: LocalRun,
    exported: dict[str, FileDigest],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tally: Tally,
) -> None:
    run = LocalRun(Path(shutil.copytree(finished.root, tmp_path / "run")))
    content = DAMAGES[damage](run.path(key).read_bytes())
    run.path(key).unlink()
    if content is not None:
        run.path(key).write_bytes(content)
    before = digest_tree(run.root)
    commands = [["status", run.uri], ["export", run.uri, str(tmp_path / "model"), "--iteration", "1"]]
    commands += [["gc", run.uri, "--dry-run"], ["report", run.uri, "-o", str(tmp_path / "page.html")]]
    outcomes = set()
    for command in commands:
        capsys.readouterr()
        code = main(command)
        error = capsys.readouterr().err
        if code:
            assert code in (1, 2, 3), command
            assert error.count("\n") <= 1, error
        elif command[0] == "export":
            assert digest_tree(tmp_path / "model") == exported
        outcomes.add(code)
    assert digest_tree(run.root) == before
    tally(f"{damage} (records)", "right result" if outcomes == {0} else "named in one line")
