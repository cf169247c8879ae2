from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from spin_components.data.shards import Pair, Prompt, Score, write_rows
from spin_pipeline.runs.reproduction.columns import Columns, common, differing, index_of, key_of, read_columns

PAIRS = [Pair(index, [1], [2], [3, index], "stop", 1, -float(index)) for index in (2, 0, 1, 3)]


def columns(path: Path, rows: list[Any], **names: Any) -> Columns:
    write_rows(path, type(rows[0]), rows)
    return read_columns(path, type(rows[0]), **names)


def test_pairs_are_compared_by_origin_and_index(tmp_path: Path) -> None:
    names = {"content": ("generated_ids", "finish_reason"), "numbers": ("sampled_logprob",)}
    old = columns(tmp_path / "a", PAIRS, **names)
    changed = [replace(PAIRS[0], generated_ids=[3, 9]), replace(PAIRS[1], sampled_logprob=-0.5), *PAIRS[2:]]
    new = columns(tmp_path / "b", changed, **names)
    assert old.keys.tolist() == [key_of(index, 1) for index in range(4)]
    assert [index_of(key) for key in differing(old, new, "content").tolist()] == [2]
    assert [index_of(key) for key in differing(old, new, "sampled_logprob").tolist()] == [0]
    keys, values, new_values = common(old, new.without(differing(old, new, "content")), "sampled_logprob")
    assert [index_of(key) for key in keys.tolist()] == [0, 1, 3]
    assert (values.tolist(), new_values.tolist()) == ([0.0, -1.0, -3.0], [-0.5, -1.0, -3.0])


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    names = {"content": ("generated_ids",)}
    old, new = columns(tmp_path / "a", PAIRS, **names), columns(tmp_path / "b", PAIRS[::-1], **names)
    assert differing(old, new, "content").tolist() == []


def test_rows_that_one_run_lacks_differ(tmp_path: Path) -> None:
    scores = [Score(index, -1.0, -2.0, 0, origin) for index, origin in ((0, 1), (0, 0), (5, 1))]
    old = columns(tmp_path / "a", scores, numbers=("ref_actual", "batch"))
    new = columns(tmp_path / "b", scores[:2], numbers=("ref_actual", "batch"))
    assert differing(old, new, "ref_actual").tolist() == [key_of(5, 1)]
    assert differing(old, read_columns(None, Score, numbers=("ref_actual",)), "ref_actual").tolist() == [
        key_of(0, 1),
        key_of(5, 1),
        key_of(0, 0),
    ]


def test_records_are_compared_by_all_their_tokens(tmp_path: Path) -> None:
    prompts = [Prompt(index, [1, 2], [3], True) for index in range(3)]
    names = {"content": ("prompt_ids", "actual_ids", "actual_ended")}
    old = columns(tmp_path / "a", prompts, **names)
    changed = [replace(prompts[0], prompt_ids=[1]), replace(prompts[1], actual_ids=[3, 4]), prompts[2]]
    assert differing(old, columns(tmp_path / "b", changed, **names), "content").tolist() == [0, 1]
    changed = [*prompts[:2], replace(prompts[2], actual_ended=False)]
    assert differing(old, columns(tmp_path / "c", changed, **names), "content").tolist() == [2]
