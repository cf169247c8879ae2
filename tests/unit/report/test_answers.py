from __future__ import annotations

import math
from pathlib import Path

import pytest

from spin_components.data.shards import PairReward, write_rows
from spin_components.record.history import EpochHistory, IterationHistory
from spin_components.report import answers as module
from spin_components.report import samples
from spin_components.report.answers import lengths, read_answers
from spin_components.report.page import embedded_json
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import Manifest, read_manifest
from support.stored_pairs import pair, write_data, write_generations, write_scores


@pytest.fixture
def iterations(tmp_path: Path) -> tuple[LocalRun, list[IterationHistory]]:
    """Two iterations of ten pairs; the second trains, for two epochs, on all of its own and on four of the first."""
    run = LocalRun(tmp_path / "run")
    write_data(run, num_shards=1)
    for origin in (0, 1):
        write_generations(run, origin, 0, [pair(index, origin) for index in (3, 1, 2, 0, *range(4, 10))])
    write_scores(run, 0, 0, [(index, 0, 0) for index in range(10)], origins=[0])
    rows = [(index, 1, 0) for index in range(10)] + [(index, 0, 1) for index in (1, 3, 5, 7)]
    write_scores(run, 1, 0, rows, origins=[1, 0])
    return run, [_iteration(run, 0, num_epochs=1), _iteration(run, 1, num_epochs=2)]


def _iteration(run: LocalRun, t: int, num_epochs: int) -> IterationHistory:
    generated, scored = (
        read_manifest(run, layout.manifest_of(key(t, 0))) for key in (layout.generations, layout.ref_logprobs)
    )
    key = layout.rewards(t, num_epochs - 1)
    with run.staged(key) as staged:
        rewards = [PairReward(index, 1, float(index), 2.0, t) for index in range(10)]
        write_rows(staged.path, PairReward, [*rewards, PairReward(1, 1, 99.0, 0.0, 5)])  # of another iteration
    trained = [Manifest(step="train-epoch", inputs={}, outputs=staged.outputs) for _ in range(num_epochs)]
    return IterationHistory(
        t, [(generated, scored)], [EpochHistory(i, each, None) for i, each in enumerate(trained)], None
    )


def test_all_pairs_are_counted_by_their_tokens(iterations: tuple[LocalRun, list[IterationHistory]]) -> None:
    run, history = iterations
    answers = read_answers(run, history[1], history)
    # human answers have 3 tokens; generated ones 2 and index % 3 more
    assert answers.num_pairs == 10
    assert answers.num_actual.tolist() == [0, 0, 0, 10]
    assert answers.num_generated.tolist() == [0, 0, 4, 3, 3]
    chart = lengths([answers])
    assert (chart["human_mean"], chart["generated"][0]["mean"]) == (3.0, 2.9)
    assert chart["generated"][0]["shares"] == [0.0, 0.0, 0.4, 0.3, 0.3]
    # log-probabilities -index and -2 index: 45 nats over 30 tokens, 90 over 29
    assert answers.mean_logprobs == {"actual": -1.5, "generated": -90 / 29}


def test_tokens_count_once_for_each_epoch_that_trained_on_them(
    iterations: tuple[LocalRun, list[IterationHistory]],
) -> None:
    run, history = iterations
    # iteration 0: 59 tokens in one epoch, and pairs 1, 3, 5, 7 of 6, 5, 7, 6 tokens in two of iteration 1
    assert [read_answers(run, each, history).num_trained_tokens for each in history] == [59 + 2 * 24, 2 * 59]


def test_the_sample_has_evenly_spaced_pairs_and_those_of_extreme_margins(
    iterations: tuple[LocalRun, list[IterationHistory]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, history = iterations
    monkeypatch.setattr(module, "MOST_ROWS", 3)
    monkeypatch.setattr(module, "EXTREMES", 2)
    answers = read_answers(run, history[0], history)
    assert answers.spread == [0, 4, 9]
    assert answers.extremes == [0, 1, 8, 9]  # the margin is index - 2
    rows = {row["index"]: row for row in answers.sampled([8, 1, 3])}
    assert sorted(rows) == [1, 3, 8]
    assert [rows[index]["margin"] for index in (1, 3, 8)] == [-1.0, 1.0, 6.0]
    assert rows[3]["generated_ids"] == pair(3, 0).generated_ids
    assert rows[3]["finish_reason"] == "stop"


def test_margins_are_unknown_before_an_epoch_has_ended(iterations: tuple[LocalRun, list[IterationHistory]]) -> None:
    run, (first, _) = iterations
    answers = read_answers(run, IterationHistory(0, first.shards, [], None), [])
    assert (answers.extremes, answers.num_trained_tokens) == ([], 0)
    assert all(math.isnan(row["margin"]) for row in answers.sampled([1, 2]))


def test_fewer_pairs_are_shown_where_their_texts_would_be_too_large(
    iterations: tuple[LocalRun, list[IterationHistory]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, history = iterations
    answers = [read_answers(run, each, history) for each in history]
    whole = samples._decoded(answers, lambda ids: "<" * len(ids))
    assert [row["index"] for row in whole] == list(range(10))
    assert [(row["prompt"], row["answers"][1]["tokens"]) for row in whole][2] == ("<<<", 4)
    monkeypatch.setattr(samples, "SIZE_BUDGET", 1500)
    fewer = samples._decoded(answers, lambda ids: "<" * len(ids))
    assert 1 < len(fewer) < 10
    assert len(embedded_json(fewer).encode()) <= 1500
    monkeypatch.setattr(samples, "SIZE_BUDGET", 1)
    assert len(samples._decoded(answers, lambda ids: "<" * len(ids))) == 1
