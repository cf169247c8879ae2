"""Mutation tests: each mistake of `mutations` is planted and must be detected by a test or a run's own check."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest

from parity.mutations import MUTATIONS, Area, Mutation, planted
from parity.second_iteration import SecondIteration


@pytest.fixture(scope="module")
def passed() -> set[Callable[..., None]]:
    """Checks that have passed without a mistake; mistakes share them."""
    return set()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_planted_mistake_is_detected(
    mutation: Mutation, request: pytest.FixtureRequest, passed: set[Callable[..., None]]
) -> None:
    iterations: list[SecondIteration] = []
    if mutation.is_caught_at_run_time:
        iterations.append(request.getfixturevalue("second_iteration"))
        iterations[0].sample()
        iterations[0].score()
    if mutation.caught_by not in passed:
        mutation.caught_by(*iterations)
        passed.add(mutation.caught_by)
    with planted(mutation), pytest.raises(mutation.raises):
        mutation.caught_by(*iterations)


def test_every_kind_of_mistake_is_planted_and_most_are_detected_at_run_time() -> None:
    assert {mutation.area for mutation in MUTATIONS} == set(get_args(Area))
    at_run_time = {mutation.area for mutation in MUTATIONS if mutation.is_caught_at_run_time}
    assert at_run_time == set(get_args(Area)), "each kind must have a mistake that a run detects"


def test_planted_mistakes_are_removed_afterwards() -> None:
    before = [mutation.function.__code__ for mutation in MUTATIONS]
    for mutation in MUTATIONS:
        with planted(mutation):
            assert mutation.function.__code__ not in before
    assert [mutation.function.__code__ for mutation in MUTATIONS] == before
