"""`prepare` killed before any of its writes goes on with what it had rendered, and ends with the same bits."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spin_components.record.events import read_events
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import read_manifest
from spin_components.store.open import open_run
from spin_pipeline.runs.garbage import collect_garbage
from support.killed_prepare import attempt_prepare
from support.s3_server import BUCKET, S3Server

MakeSettings = Callable[..., Settings]
KILLED = -signal.SIGKILL
PART_WRITES = 2
"""A part, and the manifest that lists it."""


def write_data(folder: Path, first: int = 0) -> dict[str, str]:
    """Two files of records: bad ones, one that cannot be rendered, a repeat, and the text of a special token."""
    lines = [{"prompt": f"Is {number} a number?", "response": "Yes, it is one."} for number in range(first, first + 40)]
    lines[7]["response"] = "It ends like this: </s>"
    lines[11] = lines[3]
    lines[20]["prompt"] = "word " * 400
    text = [json.dumps(line) for line in lines]
    text.insert(30, "{")
    text.append("no record")
    held_out = [json.dumps({"prompt": f"And {number}?", "response": "Yes."}) for number in range(8)]
    for name, content in (("train", text), ("validation", [*held_out, "{"])):
        (folder / f"{name}.jsonl").write_text("\n".join(content) + "\n", encoding="utf-8")
    return {name: str(folder / f"{name}.jsonl") for name in ("train", "validation")}


@pytest.fixture
def settings_at(make_settings: MakeSettings, tmp_path: Path) -> Callable[..., Settings]:
    data = {**write_data(tmp_path), "on_bad_record": "skip", "long_prompts": "refuse", "max_train_records": 0}

    def make(uri: str) -> Settings:
        return make_settings(run={"uri": uri}, data=data, generation={"shards": 2})

    return make


def result(run: RunStore) -> tuple[dict[str, str], dict[str, Any]]:
    manifest = read_manifest(run, layout.DATA_MANIFEST)
    return {key: file.sha256 for key, file in manifest.outputs.items()}, manifest.facts


def first_progress(run: RunStore) -> list[int]:
    """Records that were done at the beginning of each attempt; of one that was killed early, nothing may be stored."""
    done: dict[int, int] = {}
    for event in read_events(run):
        if event["kind"] == "progress" and event["unit"] == "records":
            done.setdefault(event["attempt"], event["done"])
    return list(done.values())


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_prepare_killed_before_any_write_ends_with_the_same_bits(
    kind: str, settings_at: Callable[..., Settings], s3: S3Server, tmp_path: Path
) -> None:
    root = str(tmp_path) if kind == "folder" else f"s3://{BUCKET}"
    settings = settings_at(root)
    ((code, num_writes),) = attempt_prepare(settings, [(f"{root}/undisturbed", 0)])
    assert code == 0
    with open_run(f"{root}/undisturbed") as run:
        undisturbed = result(run)
        assert not run.sizes(layout.RENDERED), "parts are deleted once they are of no use"
    assert undisturbed[1]["num_bad_records"] == 3
    assert undisturbed[1]["num_unrenderable_records"] == 1
    assert num_writes >= 3 * PART_WRITES + 4, "several parts, three files and the manifest"

    fatal = range(1, num_writes + 1, 3 if kind == "folder" else 6)
    again = [1, 2, 3, 3, 5, 4, 0]
    attempts = [(f"{root}/killed-{number}", each) for number in fatal for each in (number, 0)]
    attempts += [(f"{root}/again-and-again", number) for number in again]
    codes = [code for code, _ in attempt_prepare(settings, attempts)]
    assert codes == [KILLED if number else 0 for _, number in attempts]
    for number in fatal:
        with open_run(f"{root}/killed-{number}") as run:
            assert result(run) == undisturbed
            assert not run.sizes(layout.RENDERED)
            if PART_WRITES < number < num_writes - 3:
                assert first_progress(run)[-1] > 0, "the records of the first part are not rendered again"
    with open_run(f"{root}/again-and-again") as run:
        assert result(run) == undisturbed
        assert first_progress(run)[-1] > 0


def begun_anew(settings: Settings, folder: Path) -> str:
    """End an interrupted `prepare` that cannot go on, with the result of an undisturbed one; returns its warning."""
    ended = attempt_prepare(settings, [(settings.run.uri, 0), (str(folder), 0)])
    assert [code for code, _ in ended] == [0, 0]
    with open_run(settings.run.uri) as run, open_run(str(folder)) as undisturbed:
        assert result(run) == result(undisturbed)
        assert not run.sizes(layout.RENDERED)
        (warning,) = [event["message"] for event in read_events(run) if "begins anew" in event.get("message", "")]
    return str(warning)


def test_data_that_changed_after_the_kill_is_rendered_from_the_beginning(
    settings_at: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = settings_at(str(tmp_path / "changed"))
    assert attempt_prepare(settings, [(settings.run.uri, 5)])[0][0] == KILLED
    write_data(tmp_path, first=100)
    assert "data.train (content) was" in begun_anew(settings, tmp_path / "undisturbed")


def test_a_damaged_part_is_not_used_and_garbage_collection_keeps_the_others(
    settings_at: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = settings_at(str(tmp_path / "damaged"))
    assert attempt_prepare(settings, [(settings.run.uri, 6)])[0][0] == KILLED
    listed = {layout.rendered_part(0), layout.rendered_part(1), layout.RENDERED_MANIFEST}
    with open_run(settings.run.uri) as run:
        assert set(run.sizes(layout.RENDERED)) == {*listed, layout.rendered_part(2)}
    collected = collect_garbage(settings.run.uri, dry_run=False)
    assert list(collected.files) == [layout.rendered_part(2)], "killed before its manifest was written"
    part = Path(settings.run.uri, layout.rendered_part(1))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.chmod(0o644)
    part.write_bytes(content)
    assert "00001.arrow has SHA-256" in begun_anew(settings, tmp_path / "undisturbed")
