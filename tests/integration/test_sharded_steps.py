"""Steps that score and validate with a model whose weights their processes divide give the numbers of one process."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spin_components.data.shards import AnswerLoss, Sample, Score, read_rows
from spin_components.generate.step import generate_shard
from spin_components.ref_logprob.step import score_shard
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import read_manifest
from spin_components.validate.step import validate
from support import bounds
from support.playing import begin, play_iteration

pytestmark = pytest.mark.usefixtures("warm_python")

MakeSettings = Callable[..., Settings]
ONE: dict[str, Any] = {"device": "cpu", "threads": 1}
TWO = {**ONE, "ranks": 2, "shard_scoring": "on"}
THREE = {**TWO, "ranks": 3}
SHORT = {
    "data": {"max_train_records": 2, "validation_size": 4},
    "generation": {"max_new_tokens": 8},
    "training": {"global_batch_size": 12, "micro_batch_size": 2},
}
"""Two pairs, and two of the iteration before, in two micro-batches: one of three processes has none."""


def again(run: LocalRun, key: str) -> None:
    """Have a step do its work again."""
    run.delete(key)


def test_scores_of_a_policy_with_history_are_those_of_one_process(
    make_settings: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    settings = make_settings(
        hardware=ONE,
        spin={"max_iterations": 2, "history": 1},
        lora={"r": 4, "export": "adapter"},
        **SHORT,
    )
    reference = play_iteration(settings, 0, begin(settings))
    run, uri = LocalRun(Path(settings.run.uri)), settings.run.uri
    generations = generate_shard(uri, 1, 0, reference, ONE)
    key = layout.ref_logprobs(1, 0)
    rows = []
    caplog.set_level(logging.INFO)
    for machine in ({**TWO, "shard_scoring": "off"}, TWO, {**THREE, "shard_scoring": "off"}, THREE):
        score_shard(uri, 1, 0, reference, generations, machine)
        rows.append(read_rows(run.path(key), Score))
        again(run, layout.manifest_of(key))
    assert {score.origin for score in rows[0]} == {0, 1}
    logged = [record.message for record in caplog.records if "divide the weights" in record.message]
    assert logged == [f"{ranks} processes divide the weights of the model" for ranks in (2, 3)]
    assert rows[1] == rows[0]
    assert rows[3] == rows[2]


def test_a_validation_has_the_losses_and_answers_of_one_process(make_settings: MakeSettings, tiny_llama: Path) -> None:
    # four records in two batches and one answer, for three processes: some have no batch, two have no answer
    settings = make_settings(
        hardware=ONE,
        **SHORT,
        validation={"batch_size": 2, "num_samples": 1},
    )
    reference, uri = begin(settings), settings.run.uri
    run = LocalRun(Path(uri))
    found: list[tuple[list[AnswerLoss], list[Sample]]] = []
    for machine in (ONE, THREE):
        if found:
            again(run, layout.validation(layout.BASE, 0))
            validate(uri, layout.BASE, 0, reference, machine)
        losses = read_rows(run.path(layout.validation_losses(layout.BASE, 0)), AnswerLoss)
        found.append((losses, read_rows(run.path(layout.validation_samples(layout.BASE, 0)), Sample)))
    (losses, samples), (sharded_losses, sharded_samples) = found
    assert sharded_losses == losses
    assert [sample.generated_ids for sample in sharded_samples] == [sample.generated_ids for sample in samples]
    bound = bounds.of_logprob(bounds.model_in(tiny_llama), num_tokens=8)
    assert [row.logprob for row in sharded_samples] == pytest.approx([row.logprob for row in samples], abs=bound)


_SCORE = """
import json, sys
from spin_components.ref_logprob.step import score_shard
score_shard(*json.loads(sys.argv[1]))
"""


def test_a_step_that_is_killed_as_its_ranks_compute_is_done_again(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(
        hardware=ONE, training={"micro_batch_size": 1, "global_batch_size": 4}, generation={"max_new_tokens": 8}
    )
    reference, uri = begin(settings), settings.run.uri
    generations = generate_shard(uri, 0, 0, reference, ONE)
    score_shard(uri, 0, 0, reference, generations, {**TWO, "shard_scoring": "off"})
    run, key = LocalRun(Path(uri)), layout.ref_logprobs(0, 0)
    expected = read_rows(run.path(key), Score)
    again(run, layout.manifest_of(key))
    run.path(key).unlink()

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    arguments = json.dumps([uri, 0, 0, reference, generations, TWO])
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        [sys.executable, "-c", _SCORE, arguments], env=environment, start_new_session=True
    ) as process:
        while process.poll() is None and not list(temporary.glob("spin-ranks-*/done-0")):
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not run.exists(layout.manifest_of(key))
    score_shard(uri, 0, 0, reference, generations, TWO)
    assert read_rows(run.path(key), Score) == expected
    assert read_manifest(run, layout.manifest_of(key)).facts["num_pairs"] == len(expected)
