"""Micro-batches by tokens: the losses, weights and scores of micro-batches by pairs, on one rank and on two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spin_components.data.shards import PairReward, Score, read_rows
from spin_components.memory import processes
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import read_manifest
from support import bounds
from support.playing import begin, losses, play, play_scores
from support.small import small_settings

pytestmark = pytest.mark.usefixtures("warm_python")

MakeSettings = Callable[..., Settings]
TWO_RANKS = {"device": "cpu", "ranks": 2, "threads": 1}
BUDGET = {"micro_batch_size": 4, "micro_batch_tokens": 220}
"""Packed, two or three of the pairs, which have 60 to 100 tokens; padded, one."""


@pytest.fixture(scope="module")
def by_pairs(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, question_file: Path) -> LocalRun:
    """A run of one epoch in micro-batches of 4 pairs, with plain torch; not to be written to."""
    return play(small_settings(tmp_path_factory.mktemp("plain") / "run", tiny_llama, question_file))


def assert_same_training(found: LocalRun, expected: LocalRun, base: Path) -> None:
    """Losses, rewards and weights, but for rounding."""
    assert losses(found) == pytest.approx(losses(expected), abs=bounds.of_small_run(base, num_steps=3))
    rewards = [read_rows(run.path(layout.rewards(0, 0)), PairReward) for run in (found, expected)]
    assert [(row.index, row.step) for row in rewards[0]] == [(row.index, row.step) for row in rewards[1]]
    policies = [load_file(run.path(f"{layout.epoch(0, 0)}/policy/model.safetensors")) for run in (found, expected)]
    start = load_file(base / "model.safetensors")
    bounds.assert_trained_alike(policies[0], policies[1], start, lr=1e-3, num_steps=3)


@pytest.mark.parametrize("packing", ["on", "off"])
def test_one_rank_trains_as_by_pairs(
    make_settings: MakeSettings, by_pairs: LocalRun, tiny_llama: Path, packing: str
) -> None:
    run = play(make_settings(training={**BUDGET, "packing": packing}))
    inputs = read_manifest(run, layout.epoch_manifest(0, 0)).inputs
    assert inputs["training.micro_batch_tokens"] == 220
    assert "training.micro_batch_tokens" not in read_manifest(by_pairs, layout.epoch_manifest(0, 0)).inputs
    assert_same_training(run, by_pairs, tiny_llama)


@pytest.mark.parametrize(("stage", "packing"), [(0, "on"), (1, "off"), (2, "on"), (3, "on")])
def test_two_ranks_train_as_by_pairs(
    make_settings: MakeSettings, by_pairs: LocalRun, tiny_llama: Path, stage: int, packing: str
) -> None:
    training = {**BUDGET, "packing": packing, "backend": "deepspeed", "zero_stage": stage}
    run = play(make_settings(training=training, hardware=TWO_RANKS))
    assert_same_training(run, by_pairs, tiny_llama)
    scores = [read_rows(each.path(layout.ref_logprobs(0, 0)), Score) for each in (run, by_pairs)]
    assert [(row.index, row.batch) for row in scores[0]] == [(row.index, row.batch) for row in scores[1]]
    found, expected = (torch.tensor([[row.ref_actual, row.ref_generated] for row in each]) for each in scores)
    atol = bounds.of_logprob(bounds.model_in(tiny_llama), 160)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=atol)


def test_two_processes_score_in_the_micro_batches_of_one(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "START_S", 0.0)
    scored = []
    for ranks in (1, 2):
        machine = {"device": "cpu", "threads": 1, "ranks": ranks}
        settings = make_settings(run={"uri": str(tmp_path / f"{ranks}")}, training=BUDGET, hardware=machine)
        play_scores(settings, 0, begin(settings))
        scored.append(read_rows(LocalRun(tmp_path / f"{ranks}").path(layout.ref_logprobs(0, 0)), Score))
    assert scored[0] == scored[1]
