from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from spin_components.data.shards import Pair, Score
from spin_components.errors import IntegrityError
from spin_components.ref_logprob.sampler_check import SAMPLER_TOLERANCE, check_sampler, coarser

PAIRS = [
    Pair(0, [5], [6], [7, 8, 9, 2], "stop", 3, sampled_logprob=-8.0),
    Pair(1, [5], [6], [7], "length", 3, sampled_logprob=-2.0),
    Pair(0, [5], [6], [4, 4], "stop", 2, sampled_logprob=-900.0),  # of the iteration before, by another model
]
SCORES = [Score(0, -1.0, -8.2, 0, 3), Score(1, -1.0, -1.7, 0, 3), Score(0, -1.0, -5.0, 0, 2)]


def found(pairs: list[Pair] = PAIRS, scores: list[Score] = SCORES, **changes: Any) -> dict[str, float]:
    arguments: dict[str, Any] = {
        "iteration": 3,
        "engine": "vllm",
        "precision": "bf16",
        "where": "s3://b/r/generations.parquet",
    }
    return check_sampler(pairs, scores, **{**arguments, **changes})


def test_differences_are_added_without_their_signs_and_shared_out_over_tokens() -> None:
    # (0.2 + 0.3) / (4 + 1); the pair of iteration 2 does not count
    assert found() == pytest.approx({"sampler_difference": 0.1, "sampler_tolerance": 0.1})


def test_more_than_is_allowed_is_an_error_that_says_what_may_differ() -> None:
    further = [replace(SCORES[0], ref_generated=-8.3), *SCORES[1:]]
    with pytest.raises(IntegrityError) as caught:
        found(scores=further)
    says = str(caught.value)
    assert says.startswith("s3://b/r/generations.parquet: the generated answers were not sampled from the reference")
    assert "had -2.0000 nats each when they were sampled and have -2.0000 now" in says  # the sums hide it
    assert "0.12 nats a token apart over 2 answers of 5 tokens, expected at most 0.1 (vllm, bf16)" in says
    for named in ("the weights", "template", "BOS", "EOS", "hardware.sampler_tolerance"):
        assert named in says


def test_a_tolerance_of_ones_own_replaces_the_engines() -> None:
    assert found(engine="transformers", precision="float32", tolerance=0.2)["sampler_tolerance"] == 0.2
    with pytest.raises(IntegrityError, match=r"expected at most 0\.001 \(transformers, float32\)"):
        found(engine="transformers", precision="float32")
    with pytest.raises(IntegrityError, match=r"at most 0\.01 "):
        found(tolerance=0.01)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_no_agreement(value: float) -> None:
    with pytest.raises(IntegrityError):
        found([replace(PAIRS[0], sampled_logprob=value), *PAIRS[1:]])


def test_without_answers_of_its_own_an_iteration_has_nothing_to_compare() -> None:
    assert found([], []) == found(PAIRS[2:], SCORES[2:]) == {}


def test_engines_and_coarser_precisions_are_allowed_more() -> None:
    assert (coarser("float32", "float32"), coarser("float32", "bf16"), coarser("bf16", "float32")) == (
        "float32",
        "bf16",
        "bf16",
    )
    for engine in ("transformers", "vllm"):
        assert SAMPLER_TOLERANCE[engine, "float32"] < SAMPLER_TOLERANCE[engine, "bf16"]
    for precision in ("float32", "bf16"):
        assert SAMPLER_TOLERANCE["transformers", precision] < SAMPLER_TOLERANCE["vllm", precision]
