from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from spin_components.data.shards import Pair, write_rows
from spin_components.data.stored_rows import StoredRows, stream_batches
from spin_components.data.triplets import Triplets
from spin_components.model.scoring import all_answers
from spin_components.ref_logprob.pool import Hygiene, proto_rows

HYGIENE = Hygiene(frozenset({2}), drop_truncated=True)


def pair(index: int, origin: int, *generated: int, finish_reason: str = "stop") -> Pair:
    return Pair(index, [5, 6], [7, 8, 2], list(generated or (index + 10, origin + 50, 2)), finish_reason, origin)


def test_each_pair_gets_what_iteration_0_answered_to_its_prompt() -> None:
    protos = [pair(4, 0), pair(1, 0), pair(3, 0)]
    rows = proto_rows([pair(3, 2), pair(4, 2), pair(1, 1), pair(1, 2)], protos, HYGIENE)
    assert rows.tolist() == [2, 0, 1, 1]


def test_a_pair_has_no_third_answer_where_iteration_0_gave_none_that_is_kept() -> None:
    protos = [pair(0, 0, 2), pair(1, 0, 7, 8, 2), pair(2, 0, 9, 9, finish_reason="length"), pair(3, 0)]
    own = [pair(index, 1) for index in (0, 1, 2, 3, 9)]  # empty, the human's own, cut, kept, not there
    assert proto_rows(own, protos, HYGIENE).tolist() == [-1, -1, -1, 3, -1]
    assert proto_rows(own, protos, replace(HYGIENE, drop_truncated=False)).tolist() == [-1, -1, 2, 3, -1]


def test_a_pair_has_no_third_answer_where_that_is_its_generated_one() -> None:
    protos = [pair(0, 0, 30, 2), pair(1, 0, 30, 2)]
    # the pair of iteration 0 itself, an answer that came again, the same answer to another prompt
    rows = proto_rows([pair(0, 0, 30, 2), pair(1, 1, 30, 2), pair(0, 1, 31, 2)], protos, HYGIENE)
    assert rows.tolist() == [-1, -1, 0]


def test_no_pairs_and_no_protos_are_allowed() -> None:
    assert proto_rows([pair(0, 1)], [], HYGIENE).tolist() == [-1]
    assert proto_rows([], [pair(0, 0)], HYGIENE).tolist() == []


def test_triplets_are_the_pairs_with_their_third_answers() -> None:
    triplets = Triplets([pair(0, 1), pair(1, 1)], [pair(7, 0), pair(1, 0, 61, 62)], np.array([-1, 1]))
    assert list(triplets) == [pair(0, 1), replace(pair(1, 1), proto_ids=[61, 62])]
    assert triplets[0:2] == list(triplets)
    assert (len(triplets), triplets.num_triplets) == (2, 1)
    assert [each.num_tokens for each in triplets] == [2 * 2 + 3 + 3, 3 * 2 + 3 + 3 + 2]
    groups = all_answers(triplets)
    assert [list(map(list, group.answers)) for group in groups] == [
        [[7, 8, 2], [10, 51, 2]],
        [[7, 8, 2], [11, 51, 2], [61, 62]],
    ]


def test_third_answers_are_stored_where_a_pair_has_one(tmp_path: Path) -> None:
    pairs = [pair(0, 1), replace(pair(1, 1), proto_ids=[61, 62]), pair(2, 1)]
    write_rows(tmp_path / "triplets.parquet", Pair, pairs)
    stored = StoredRows([tmp_path / "triplets.parquet"], Pair, tmp_path)
    assert list(stored) == pairs
    assert [stored[i] for i in range(3)] == pairs
    write_rows(tmp_path / "pairs.parquet", Pair, [pairs[0]])  # a file of generations has no such column
    (batch,) = stream_batches([tmp_path / "pairs.parquet"], Pair)
    assert "proto_ids" not in batch.schema.names
