"""What was hashed is what is used: files that change meanwhile are noticed, and replaced folders are whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spin_components.data import records
from spin_components.errors import IntegrityError, StorageError
from spin_components.model import stored
from spin_components.prepare import step as prepare_step
from spin_components.settings.settings import Settings
from spin_components.store import layout, renames
from spin_components.store.bucket import Bucket
from spin_components.store.digests import digest_tree
from spin_components.store.local import LocalRun
from spin_components.store.sources import Sources
from spin_components.store.transfer import Transfers
from spin_pipeline.runs import export
from spin_pipeline.runs.export import export_model
from support.playing import begin
from support.s3_server import BUCKET, S3Server

MakeSettings = Callable[..., Settings]


def test_data_that_changes_after_it_was_hashed_is_noticed(
    make_settings: MakeSettings, question_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shutil.copyfile(question_file, tmp_path / "data.jsonl")
    settings = make_settings(data={"train": str(data), "max_train_records": 8, "validation_size": 4})
    read = records.stream_source

    def changed_first(*arguments: Any, **named: Any) -> Any:
        content = data.read_bytes()
        data.write_bytes(content.replace(b"a", b"b"))  # of the same size
        return read(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(prepare_step, "stream_source", changed_first)
        with pytest.raises(IntegrityError, match=r"data\.jsonl changed while it was used"):
            begin(settings)
    run = LocalRun(Path(settings.run.uri))
    assert not run.exists(layout.DATA_MANIFEST), "nothing that was made from it counts"
    begin(settings)
    assert run.exists(layout.DATA_MANIFEST), "the same command begins again, with the file as it is now"


def test_a_file_is_looked_at_again_only_where_it_may_have_changed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    with Sources() as sources:
        source = sources.open_data(str(tmp_path), what="data.train")
        assert list(source.digests) == ["a.jsonl"]
        sources.check_unchanged()
        os.utime(tmp_path / "a.jsonl")
        sources.check_unchanged()  # another time, the same content
        (tmp_path / "a.jsonl").write_text("[]")
        with pytest.raises(IntegrityError, match=r"was 2 bytes with SHA-256 .* when it was read first"):
            sources.check_unchanged()
        (tmp_path / "a.jsonl").unlink()
        with pytest.raises(IntegrityError, match="changed while it was used"):
            sources.check_unchanged()


def test_a_model_that_changes_after_it_was_verified_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    files = digest_tree(tmp_path / "model")
    with Sources() as sources:
        sources.fetch_model(str(tmp_path / "model"), files, what="the base model")
        sources.check_unchanged()
        (tmp_path / "model" / "config.json").write_text("[]")
        with pytest.raises(IntegrityError, match=r"config\.json changed while it was used"):
            sources.check_unchanged()


def test_an_object_that_is_replaced_while_it_is_read_is_not_half_used(s3: S3Server, tmp_path: Path) -> None:
    bucket = Bucket(BUCKET)
    bucket.put("replaced/data.jsonl", b"first")
    found = bucket.stat("replaced/data.jsonl")
    assert found
    bucket.put("replaced/data.jsonl", b"other")
    transfers = Transfers(bucket)
    with pytest.raises(StorageError, match="was replaced while it was read"):
        transfers.download("replaced/data.jsonl", tmp_path / "data", 5, etag=found.etag)
    assert transfers.download("replaced/data.jsonl", tmp_path / "data", 5).num_bytes == 5
    transfers.close()


def test_a_policy_that_changes_while_it_is_exported_is_not_exported(
    finished: LocalRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished.root, tmp_path / "run")
    opened = stored.open_model

    def changed_after(*arguments: Any, **named: Any) -> Path:
        folder = opened(*arguments, **named)
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
        return folder

    monkeypatch.setattr(export, "open_model", changed_after)
    with pytest.raises(IntegrityError, match=r"model\.safetensors changed while it was exported"):
        export_model(str(tmp_path / "run"), "1", str(tmp_path / "exported"))
    assert not (tmp_path / "exported").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from spin_components.store import renames
from spin_components.store.local import LocalRun

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(renames, sys.argv[2], die)
with LocalRun(Path(sys.argv[1])).staged("iterations/0/epochs/0/policy") as staged:
    staged.path.mkdir()
    (staged.path / "weights").write_bytes(b"new")
"""


@pytest.mark.parametrize(("killed_in", "left"), [("put_in_place", b"old"), ("_exchange", b"old"), ("remove", b"new")])
def test_a_writer_that_is_killed_leaves_the_old_folder_or_the_new_one(
    tmp_path: Path, killed_in: str, left: bytes
) -> None:
    run = LocalRun(tmp_path)
    run.write("iterations/0/epochs/0/policy/weights", b"old")
    script = KILLED.replace("renames, sys", "local, sys").replace("store import renames", "store import local")
    killed = subprocess.run(
        [sys.executable, "-c", script if killed_in == "put_in_place" else KILLED, str(tmp_path), killed_in], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert run.read("iterations/0/epochs/0/policy/weights") == left
    assert len(run.sweep()) == 1
    assert list(run.sizes("")) == ["iterations/0/epochs/0/policy/weights"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_is_replaced_on_any_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(renames, "_renameat2", lambda: None)
    run = LocalRun(tmp_path)
    for content in (b"old", b"new"):
        with run.staged("inputs/tasks") as staged:
            staged.path.mkdir()
            (staged.path / content.decode()).write_bytes(content)
    assert list(run.sizes("")) == ["inputs/tasks/new"]
    assert not run.sweep()


def test_a_rename_is_synced_in_its_folder_and_new_folders_in_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync_one = renames._sync_one

    def recorded(path: Path) -> None:
        synced.append(path.relative_to(tmp_path).as_posix())
        sync_one(path)

    monkeypatch.setattr(renames, "_sync_one", recorded)
    LocalRun(tmp_path).write("data/a/b.json", b"x")
    folders_made, (staged, last) = synced[:2], synced[2:]
    assert folders_made == [".", "data"], "each new folder, in the one above"
    assert (Path(staged).parent.as_posix(), last) == ("data/a", "data/a"), "the file, then its name"
