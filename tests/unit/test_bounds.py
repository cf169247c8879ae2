"""The bounds that other tests take, and the float64 that they compute in."""

from __future__ import annotations

import itertools

import pytest
import torch

from matrix import SETTINGS, pairwise
from support import bounds
from support.families import SEQUENCES, alone, logprob_bound, model_of


def test_gamma_by_hand() -> None:
    # float32 has 24 digits: u is 2^-24; gamma_n = n u / (1 - n u)
    assert bounds.unit_roundoff(torch.float32) == 2.0**-24
    assert bounds.gamma(2**20) == (1 / 16) / (15 / 16)
    assert bounds.probable_gamma(16) == bounds.gamma(16)
    with pytest.raises(AssertionError, match="leave no digit"):
        bounds.gamma(2**24)


def test_the_bound_of_a_sum_holds_where_every_rounding_goes_the_same_way() -> None:
    # in float32, 2^24 + 1 is a tie that rounds back to 2^24: of ten ones none is left
    terms = [2.0**24, *[1.0] * 10]
    total = torch.tensor(0.0)
    for term in terms:
        total += term
    assert abs(float(total) - sum(terms)) == 10
    assert 10 <= bounds.of_sum(terms) < 12


def test_a_slip_into_float32_is_beyond_what_float64_is_held_to() -> None:
    with torch.no_grad():
        with bounds.float64():
            model = model_of("llama")
            expected = alone(model, SEQUENCES[3])
        found = alone(model, SEQUENCES[3])  # norms and softmax in float32, as the model has them
    assert (expected.dtype, torch.get_default_dtype()) == (torch.float64, torch.float32)
    assert (found - expected).abs() > 100 * logprob_bound(model)


def test_answers_that_part_at_a_tie_are_the_same_and_others_are_not() -> None:
    scores = [torch.tensor([0.0, 5.0, 1.0]), torch.tensor([3.0, 3.0 + 1e-6, 0.0])]
    assert bounds.same_but_for_ties([1, 1], [1, 1], scores, 0.0)
    assert bounds.same_but_for_ties([1, 0, 2], [1, 1, 0], scores, 1e-5)
    assert not bounds.same_but_for_ties([1, 2], [1, 1], scores, 1e-5)
    assert not bounds.same_but_for_ties([1], [1, 1], scores, 1e-5)


def test_every_two_values_of_two_settings_meet_in_the_matrix() -> None:
    rows = pairwise()
    for one, other in itertools.combinations(range(len(SETTINGS)), 2):
        values = list(SETTINGS.values())
        assert {(row[one], row[other]) for row in rows} == set(itertools.product(values[one], values[other]))
    assert len(rows) == 9  # two settings have three values
