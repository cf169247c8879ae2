"""What `prepare` writes, reads again, and refuses, over batches, files and attempts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spin_components.data.shards import Prompt, read_rows
from spin_components.errors import DataError, InputsChangedError
from spin_components.prepare import rendering
from spin_components.prepare.step import prepare
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import Manifest, read_manifest

MakeSettings = Callable[..., Settings]


def begin(settings: Settings) -> tuple[LocalRun, Manifest]:
    compiled = {"max_iterations": 1, "max_epochs": [1], "shards": settings.generation.shards, "nodes": 1}
    prepare(settings.run.uri, settings.model_dump(mode="json"), compiled)
    run = LocalRun(Path(settings.run.uri))
    return run, read_manifest(run, layout.DATA_MANIFEST)


def written(path: Path, *records: Any) -> str:
    path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in records) + "\n")
    return str(path)


def question(number: int, answer: str = "Yes.") -> dict[str, str]:
    return {"prompt": f"Is {number} a number?", "response": answer}


def rows(run: LocalRun, shards: int = 1) -> list[list[Prompt]]:
    keys = [*(layout.train_shard(shard) for shard in range(shards)), layout.VALIDATION]
    return [read_rows(run.path(key), Prompt) for key in keys]


def test_the_size_of_batches_changes_nothing(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = written(tmp_path / "data.jsonl", *map(question, range(30)), "{", question(3))
    table = {"train": data, "on_bad_record": "skip", "validation_size": 5, "max_train_records": 0}
    made = {}
    for size in (512, 7):
        monkeypatch.setattr(rendering, "_BATCH_RECORDS", size)
        settings = make_settings(run={"uri": str(tmp_path / str(size))}, data=table, generation={"shards": 2})
        run, manifest = begin(settings)
        made[size] = {key: file.sha256 for key, file in manifest.outputs.items()}, manifest.facts, rows(run, 2)
        assert not list(Path(settings.run.uri).glob(".made-*")), "the file of rendered records is gone"
    assert made[7] == made[512]
    first, second, held_out = made[7][2]
    totals = [sum(len(row.prompt_ids) + len(row.actual_ids) for row in part) for part in (first, second)]
    assert abs(totals[0] - totals[1]) <= max(len(row.prompt_ids) + len(row.actual_ids) for row in first + second)
    assert (len(first) + len(second), len(held_out)) == (25, 5)
    assert sorted(row.index for part in made[7][2] for row in part) == list(range(30))
    assert (made[7][1]["num_bad_records"], made[7][1]["num_removed_repeats"]) == (1, 1)


def test_a_bad_record_comes_before_one_that_cannot_be_rendered(make_settings: MakeSettings, tmp_path: Path) -> None:
    long = question(1, "Yes.")
    long["prompt"] = "word " * 400
    train, validation = written(tmp_path / "a.jsonl", long), written(tmp_path / "b.jsonl", question(2), "{")
    settings = make_settings(data={"train": train, "validation": validation, "long_prompts": "refuse"})
    with pytest.raises(DataError, match=r"1 of 2 records cannot be used(.|\n)*b\.jsonl, line 2"):
        begin(settings)
    written(tmp_path / "b.jsonl", question(2))
    with pytest.raises(DataError, match=r"1 records cannot be rendered(.|\n)*a\.jsonl, line 1: the prompt has"):
        begin(settings)


def test_a_fraction_keeps_records_on_their_side_when_data_is_added(make_settings: MakeSettings, tmp_path: Path) -> None:
    held_out = {}
    for number in (60, 120):
        data = written(tmp_path / "data.jsonl", *map(question, range(number)))
        table = {"train": data, "validation_size": 0.2, "max_train_records": 0}
        run, manifest = begin(make_settings(run={"uri": str(tmp_path / f"run-{number}")}, data=table))
        held_out[number] = {row.index for row in rows(run)[1]}
        assert manifest.inputs["data.split"] == "auto"
    assert held_out[60] == {index for index in held_out[120] if index < 60}


def test_a_run_of_an_earlier_release_keeps_its_split(make_settings: MakeSettings, tmp_path: Path) -> None:
    table = {"train": written(tmp_path / "data.jsonl", *map(question, range(60))), "validation_size": 0.2}
    settings = make_settings(data={**table, "split": "shuffle"})
    run, manifest = begin(settings)
    assert "data.split" not in manifest.inputs, "as in a run of an earlier release"
    before = run.path(layout.VALIDATION).read_bytes()
    _, again = begin(make_settings(data=table))
    assert (again, run.path(layout.VALIDATION).read_bytes()) == (manifest, before)
    run.path(layout.VALIDATION).unlink()
    with pytest.raises(InputsChangedError, match=r"data\.validation_size"):
        begin(make_settings(data={**table, "validation_size": 0.3}))


def test_another_split_is_another_run(make_settings: MakeSettings, tmp_path: Path) -> None:
    table = {"train": written(tmp_path / "data.jsonl", *map(question, range(60))), "validation_size": 0.2}
    begin(make_settings(data={**table, "split": "hash"}))
    begin(make_settings(data=table))
    with pytest.raises(InputsChangedError, match=r"data\.split"):
        begin(make_settings(data={**table, "split": "shuffle"}))


def test_shards_of_an_earlier_release_stay(make_settings: MakeSettings) -> None:
    run, manifest = begin(make_settings(generation={"shards": 2, "shard_by": "records"}))
    assert "generation.shard_by" not in manifest.inputs, "as in a run of an earlier release"
    assert begin(make_settings(generation={"shards": 2}))[1] == manifest
    # 20 of the 32 records that are not held out: each second one
    first, second = ([row.index for row in part] for part in rows(run, 2)[:2])
    assert (len(first), len(second)) == (10, 10)
    assert sorted(first + second)[::2] == first
