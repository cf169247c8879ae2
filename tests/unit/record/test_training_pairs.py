from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from spin_components.algorithm.batching import form_batches
from spin_components.data.pair_counts import PairCounts
from spin_components.data.shards import Prompt, write_rows
from spin_components.errors import DataError, IntegrityError
from spin_components.record.training_pairs import load_human_answers, load_training_pairs
from spin_components.store import layout
from spin_components.store.digests import FileDigest
from spin_components.store.local import LocalRun
from support.stored_pairs import pair, write_data, write_generations, write_scores


@pytest.fixture
def run(tmp_path: Path) -> LocalRun:
    """Iteration 1 of two shards: its own pairs, out of order, and some of iteration 0."""
    run = LocalRun(tmp_path / "run")
    write_data(run, num_shards=2)
    for origin in (0, 1):
        write_generations(run, origin, 0, [pair(index, origin) for index in range(5)])
        write_generations(run, origin, 1, [pair(index, origin) for index in range(5, 8)])
    write_scores(run, 1, 0, [(4, 1, 0), (1, 1, 1), (2, 0, 0), (0, 0, 1)], origins=[1, 0])
    write_scores(run, 1, 1, [(5, 1, 0), (7, 1, 0), (6, 0, 0)], origins=[1, 0])
    return run


def test_pairs_of_all_shards_are_joined_in_the_order_of_their_scores(run: LocalRun) -> None:
    data = load_training_pairs(run, 1)
    expected = [(4, 1), (1, 1), (2, 0), (0, 0), (5, 1), (7, 1), (6, 0)]
    assert [(score.index, score.origin) for score in data.scores] == expected
    pairs = [pair(index, origin) for index, origin in expected]
    assert data.num_tokens.tolist() == [each.num_tokens for each in pairs]
    assert data.num_packed.tolist() == [each.num_tokens - len(each.prompt_ids) for each in pairs]
    assert list(data.batches) == [(0, 2), (1, 3), (4, 5, 6)]
    assert (data.counts.num_pairs, data.counts.num_by_origin) == (7, {1: 4, 0: 3})
    assert list(data.read(range(7)).pairs) == pairs


def test_a_rank_reads_the_pairs_that_it_trains_on_and_no_others(run: LocalRun) -> None:
    read = load_training_pairs(run, 1).read([3, 0, 6, 3])
    assert [read.pairs[i] for i in (3, 0, 6)] == [pair(0, 0), pair(4, 1), pair(6, 0)]
    assert read.scores[3].index == 0
    with pytest.raises(IndexError):
        read.pairs[1]


def test_a_score_of_a_pair_that_was_not_generated_is_refused(run: LocalRun) -> None:
    write_scores(run, 1, 0, [(4, 1, 0), (9, 1, 0)], origins=[1, 0])
    with pytest.raises(IntegrityError, match="are of other pairs than"):
        load_training_pairs(run, 1)


def test_third_answers_are_read_from_the_generations_of_iteration_0(run: LocalRun) -> None:
    write_scores(run, 1, 0, [(4, 1, 0), (1, 1, 1), (2, 0, 0)], origins=[1, 0], protos=[4, 1])
    write_scores(run, 1, 1, [(5, 1, 0), (7, 1, 0), (6, 1, 0)], origins=[1, 0], protos=[6])
    data = load_training_pairs(run, 1)
    protos = {index: pair(index, 0).generated_ids for index in (4, 1, 6)}
    keys = [(4, 1), (1, 1), (2, 0), (5, 1), (7, 1), (6, 1)]
    expected = [replace(pair(*key), proto_ids=protos.get(key[0])) for key in keys]
    read = data.read(range(6))
    assert list(read.pairs) == expected
    assert data.num_tokens.tolist() == [each.num_tokens for each in expected]
    # packed, the prompt counts once
    assert data.num_packed.tolist() == [len(each.prompt_ids) + sum(map(len, each.answers)) for each in expected]
    assert [score.ref_proto for score in read.scores] == pytest.approx([-3, -3, *[math.nan] * 3, -3], nan_ok=True)
    part = data.read([5, 1])  # of another rank, or after an interruption
    assert (part.pairs[5], part.pairs[1]) == (expected[5], expected[1])


def test_a_control_of_triplets_trains_on_the_human_answers_alone(run: LocalRun) -> None:
    write_scores(run, 1, 0, [(4, 1, 0), (1, 1, 1)], origins=[1, 0], protos=[4])
    write_scores(run, 1, 1, [(5, 1, 0)], origins=[1, 0], protos=[])
    data = load_training_pairs(run, 1, with_generated=False)
    assert (len(data.scores), data.proto_rows) == (0, None)
    # prompts of 5, 2 and 6 tokens, answers of 3
    assert data.num_packed.tolist() == [5 + 3, 2 + 3, 6 + 3]
    assert data.num_tokens.tolist() == [2 * 5 + 3, 2 * 2 + 3, 2 * 6 + 3]


def test_a_third_answer_that_was_not_generated_is_refused(run: LocalRun) -> None:
    write_scores(run, 1, 0, [(4, 1, 0)], origins=[1], protos=[4])  # without the generations of iteration 0
    write_scores(run, 1, 1, [(5, 1, 0)], origins=[1], protos=[])
    with pytest.raises(IntegrityError, match="are of other pairs than"):
        load_training_pairs(run, 1)


def test_an_iteration_without_pairs_is_an_error_that_says_why(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    write_data(run, num_shards=1)
    write_generations(run, 0, 0, [pair(0, 0)])
    counts = PairCounts(num_dropped=1, dropped={"truncated": 1})
    write_scores(run, 0, 0, [], origins=[0], counts=counts)
    with pytest.raises(DataError, match="all 1 pairs of iteration 0 were dropped: 1 cut"):
        load_training_pairs(run, 0)


def test_a_changed_file_is_refused(run: LocalRun) -> None:
    run.path(layout.generations(0, 1)).write_bytes(b"something else")
    with pytest.raises(IntegrityError):
        load_training_pairs(run, 1)


def test_a_control_trains_on_the_human_answers_of_the_same_batches(run: LocalRun) -> None:
    pairs, control = load_training_pairs(run, 1), load_training_pairs(run, 1, with_generated=False)
    assert list(control.batches) == list(pairs.batches)
    assert (control.counts, len(control.scores)) == (pairs.counts, 0)
    read = list(control.read(range(7)).pairs)
    assert [each.index for each in read] == [score.index for score in pairs.scores]
    assert {(tuple(each.actual_ids), tuple(each.generated_ids)) for each in read} == {((7, 8, 2), ())}
    assert control.num_tokens.tolist() == [each.num_tokens for each in read]


def test_human_answers_of_all_shards_are_batched(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    prompts = [Prompt(index, [5] * (index + 1), [7, 2], True) for index in range(5)]
    outputs: dict[str, FileDigest] = {}
    for shard, rows in enumerate((prompts[:3], prompts[3:])):
        with run.staged(layout.train_shard(shard)) as staged:
            write_rows(staged.path, Prompt, rows)
        outputs |= staged.outputs
    write_data(run, num_shards=2, outputs=outputs)
    data = load_human_answers(run, 2, seed=0)
    assert data.batches == form_batches(5, 2, seed=0)
    read = list(data.read(range(5)).pairs)
    assert [(each.index, each.prompt_ids, each.generated_ids) for each in read][3] == (3, [5] * 4, [])
    assert data.num_tokens.tolist() == [each.num_tokens for each in read]
    assert (data.counts.num_pairs, len(data.scores)) == (5, 0)
