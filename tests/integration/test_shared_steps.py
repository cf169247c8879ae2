"""Steps whose work several processes share give the numbers of one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spin_components.data.shards import AnswerLoss, Pair, Prompt, Sample, Score, read_rows
from spin_components.engine.engine import Sampling
from spin_components.errors import InputsChangedError
from spin_components.generate.blocks import with_capacity
from spin_components.generate.engines import answer_with_engines
from spin_components.generate.step import generate_shard
from spin_components.memory import processes
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import read_manifest
from spin_components.train_epoch.step import train
from spin_components.validate.step import validate
from support import bounds
from support.playing import begin, hardware, play_scores
from support.small import small_settings

pytestmark = pytest.mark.usefixtures("warm_python")

MakeSettings = Callable[..., Settings]
ONE = {"device": "cpu", "threads": 1}
TWO = {**ONE, "ranks": 2}


SHARED = {
    "validation": {"batch_size": 3, "num_samples": 3},
    "data": {"max_train_records": 12},
    "generation": {"block_size": 5},
}
"""Twelve prompts in four blocks, eight held-out records in three batches, three of them answered: these do not
divide evenly between two processes."""


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, question_file: Path) -> LocalRun:
    """A run of one process up to its first epoch's validation; not to be written to."""
    folder = tmp_path_factory.mktemp("one") / "run"
    return play_epoch(small_settings(folder, tiny_llama, question_file, hardware=ONE, **SHARED))


def play_epoch(settings: Settings) -> LocalRun:
    """Run up to the validation of the first epoch."""
    reference, uri, machine = begin(settings), settings.run.uri, hardware(settings)
    scores = play_scores(settings, 0, reference)
    one = {**machine, "ranks": 1}  # an epoch of two ranks differs by rounding
    validate(uri, 0, 0, train(uri, 0, 0, reference, scores, one), machine, reference)
    return LocalRun(Path(uri))


def last_progress(run: LocalRun, step: str) -> int:
    """Number of units in the last progress event of a step."""
    lines = [line for path in sorted(run.root.glob("events/*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    events = [json.loads(line) for line in lines]
    return int([event["done"] for event in events if (event["kind"], event.get("step")) == ("progress", step)][-1])


def test_two_processes_give_the_answers_scores_and_losses_of_one(
    make_settings: MakeSettings, by_one: LocalRun, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "START_S", 0.0)
    run = play_epoch(make_settings(hardware=TWO, **SHARED))
    bound = bounds.of_logprob(bounds.model_in(tiny_llama), num_tokens=160)

    pairs, expected_pairs = (read_rows(each.path(layout.generations(0, 0)), Pair) for each in (run, by_one))
    assert pairs == expected_pairs, "a block is answered by the same batches"
    facts = read_manifest(run, layout.manifest_of(layout.generations(0, 0))).facts
    assert (facts["num_blocks"], facts["num_engines"]) == (4, 2)

    scores, expected_scores = (read_rows(each.path(layout.ref_logprobs(0, 0)), Score) for each in (run, by_one))
    assert scores == expected_scores, "a pair is computed in the same micro-batch"

    for iteration in (layout.BASE, 0):
        losses, expected_losses = (
            read_rows(each.path(layout.validation_losses(iteration, 0)), AnswerLoss) for each in (run, by_one)
        )
        assert losses == expected_losses, "a human answer is computed in the same batch"
        samples, expected = (
            read_rows(each.path(layout.validation_samples(iteration, 0)), Sample) for each in (run, by_one)
        )
        assert [(row.index, row.generated_ids) for row in samples] == [
            (row.index, row.generated_ids) for row in expected
        ]
        assert [row.logprob for row in samples] == pytest.approx([row.logprob for row in expected], abs=bound)
        facts, expected_facts = (read_manifest(each, layout.validation(iteration, 0)).facts for each in (run, by_one))
        assert facts.keys() == expected_facts.keys()
        assert facts["val_loss"] == expected_facts["val_loss"]
    assert [last_progress(run, step) for step in ("generate", "ref-logprob")] == [12, 12]


def test_more_processes_than_pairs_or_held_out_records(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = {
        "data": {"max_train_records": 3, "validation_size": 2},
        "generation": {"block_size": 1},
        "validation": {"batch_size": 1, "num_samples": 2},
        "training": {"global_batch_size": 4, "micro_batch_size": 1},
    }

    def scored(name: str, ranks: int) -> LocalRun:
        settings = make_settings(run={"uri": str(tmp_path / name)}, hardware={**ONE, "ranks": ranks}, **sections)
        play_scores(settings, 0, begin(settings))
        return LocalRun(tmp_path / name)

    one = scored("one", 1)
    monkeypatch.setattr(processes, "START_S", 0.0)
    four = scored("four", 4)
    kinds: dict[str, type[Any]] = {
        layout.generations(0, 0): Pair,
        layout.ref_logprobs(0, 0): Score,
        layout.validation_losses(layout.BASE, 0): AnswerLoss,
    }
    for key, kind in kinds.items():
        assert read_rows(four.path(key), kind) == read_rows(one.path(key), kind)
    assert read_manifest(four, layout.manifest_of(layout.generations(0, 0))).facts["num_engines"] == 3


def test_shards_of_unequal_size_are_answered_alike_by_several_engines(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "START_S", 0.0)
    sections = {"data": {"max_train_records": 7}, "generation": {"shards": 2, "block_size": 2}}
    runs = []
    for ranks in (1, 2):
        uri = tmp_path / str(ranks)
        settings = make_settings(
            run={"uri": str(uri)}, hardware={**ONE, "ranks": ranks}, validation={"num_samples": 0}, **sections
        )
        reference = begin(settings)
        for shard in range(2):
            generate_shard(settings.run.uri, 0, shard, reference, hardware(settings))
        runs.append([read_rows(uri / layout.generations(0, shard), Pair) for shard in range(2)])
    assert runs[0] == runs[1]
    assert sorted(map(len, runs[0])) == [3, 4]


def test_an_engine_that_finds_no_block_answers_none(
    make_settings: MakeSettings, tiny_llama: Path, question_file: Path
) -> None:
    settings = make_settings(hardware=ONE)
    prompts = [Prompt(index, [5, 6, 7 + index], [8], actual_ended=True) for index in range(3)]
    sampling = with_capacity(Sampling(settings.generation, [2], 7), prompts, settings)
    reported: list[int] = []
    one, three = (
        answer_with_engines(
            "transformers", tiny_llama, prompts, sampling, settings, num, on_gpu=False, report=reported.append
        )
        for num in (1, 3)
    )
    assert three == one
    assert reported[-1] == len(one) == 3


def test_a_run_from_before_there_were_blocks_goes_on_without_them(make_settings: MakeSettings) -> None:
    settings = make_settings(hardware=ONE, generation={"block_size": 5}, validation={"num_samples": 0})
    run = LocalRun(Path(settings.run.uri))
    reference = begin(settings)
    record, data = run.read_json(layout.RUN), run.read_json(layout.DATA_MANIFEST)
    assert (record["settings"]["generation"].pop("block_size"), data["inputs"].pop("generation.block_size")) == (5, 5)
    run.write_json(layout.RUN, record)
    run.write_json(layout.DATA_MANIFEST, data)
    default = make_settings(hardware=ONE, validation={"num_samples": 0})
    assert begin(default) == reference
    generate_shard(settings.run.uri, 0, 0, reference, hardware(default))
    manifest = read_manifest(run, layout.manifest_of(layout.generations(0, 0)))
    assert "generation.block_size" not in manifest.inputs
    assert "num_blocks" not in manifest.facts
    with pytest.raises(InputsChangedError, match=r"generation\.block_size was None, now 5"):
        begin(settings)
