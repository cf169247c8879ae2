"""The check of sampled log-probabilities against the reference in a run.

The same check for vLLM is in `integration/test_vllm.py`, which has a running engine.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from parity.second_iteration import SecondIteration
from spin_components.data.shards import Pair, Score, read_rows
from spin_components.errors import IntegrityError
from spin_components.store import layout
from support import bounds


def test_answers_of_the_reference_agree_with_its_scores(second_iteration: SecondIteration, tiny_llama: Path) -> None:
    model = bounds.model_in(tiny_llama)
    second_iteration.sample()
    facts = second_iteration.score()
    assert facts["sampler_tolerance"] == 1e-3
    assert facts["sampler_difference"] < bounds.of_logprob(model, num_tokens=1)
    run = second_iteration.run
    pairs = {pair.key: pair for pair in read_rows(run.path(layout.generations(1, 0)), Pair)}
    scores = read_rows(run.path(layout.ref_logprobs(1, 0)), Score)
    assert {score.origin for score in scores} == {0, 1}, "the check must skip pairs of the first iteration"
    for score in scores:
        if score.origin == 1:
            assert pairs[score.key].sampled_logprob == pytest.approx(
                score.ref_generated, abs=bounds.of_logprob(model, num_tokens=16)
            )


def test_answers_sampled_from_other_weights_stop_the_run(second_iteration: SecondIteration) -> None:
    second_iteration.sample(second_iteration.base)
    with pytest.raises(IntegrityError, match=r"generations/00000\.parquet: the generated answers were not sampled"):
        second_iteration.score()
    assert not second_iteration.run.exists(layout.manifest_of(layout.ref_logprobs(1, 0)))
    # the tolerance can be raised, and is recorded
    facts = second_iteration.score(sampler_tolerance=9.0)
    assert 1e-3 < facts["sampler_difference"] < facts["sampler_tolerance"] == 9.0


def test_a_norm_weight_changed_by_one_percent_stops_the_run(
    second_iteration: SecondIteration, monkeypatch: pytest.MonkeyPatch
) -> None:
    # digests detect an altered file; this simulates a wrong loader, e.g. one that loses a tensor
    from spin_components.model import frozen
    from spin_components.model import loading as modeling

    second_iteration.sample()
    load = modeling.load_model

    def load_scaled(*args: object, **kwargs: object) -> object:
        model = load(*args, **kwargs)  # type: ignore[arg-type]
        with torch.no_grad():
            model.model.norm.weight.mul_(1.01)
        return model

    monkeypatch.setattr(frozen, "load_model", load_scaled)
    with pytest.raises(IntegrityError, match="were not sampled from the reference"):
        second_iteration.score()
