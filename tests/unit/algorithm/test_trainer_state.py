from __future__ import annotations

import pytest
from pydantic import ValidationError

from spin_components.algorithm.trainer_state import TrainerState


@pytest.mark.parametrize("steps_per_epoch", [1, 5])
@pytest.mark.parametrize("max_epochs", [1, 3])
def test_nemos_formulas_hold_for_iterations_of_equal_length(steps_per_epoch: int, max_epochs: int) -> None:
    for step in range(4 * steps_per_epoch * max_epochs):
        state = TrainerState(step=step, steps_per_epoch=(steps_per_epoch,) * 4, epochs=(max_epochs,) * 4)
        assert state.epoch == (step // steps_per_epoch) % max_epochs
        assert state.iteration == (step // steps_per_epoch) // max_epochs


def test_iterations_of_different_length_by_hand() -> None:
    # two epochs of 3 steps, then three epochs of 1 step, then one epoch of 2
    places = [(0, 0)] * 3 + [(0, 1)] * 3 + [(1, 0), (1, 1), (1, 2)] + [(2, 0)] * 2 + [(3, 0)]
    states = [TrainerState(step=step, steps_per_epoch=(3, 1, 2), epochs=(2, 3, 1)) for step in range(len(places))]
    assert [(state.iteration, state.epoch) for state in states] == places


def test_counters_continue_over_steps_and_iterations() -> None:
    state = TrainerState().begin_iteration(0, 2, epochs=1)
    state = state.after_step(8).after_step(5)
    assert (state.step, state.consumed_samples, state.iteration, state.epoch) == (2, 13, 1, 0)
    state = state.begin_iteration(1, 4, epochs=2).after_step(8)
    assert (state.step, state.consumed_samples, state.iteration, state.steps_per_epoch) == (3, 21, 1, (2, 4))
    assert (state.epochs, state.num_updates) == ((1, 2), 3)


def test_beginning_an_iteration_again_replaces_its_counts_and_drops_later_ones() -> None:
    state = TrainerState(step=4, steps_per_epoch=(4, 9, 9), epochs=(1, 5, 5)).begin_iteration(1, 3, epochs=2)
    assert (state.steps_per_epoch, state.epochs) == ((4, 3), (1, 2))


def test_a_state_is_unchanged_by_a_json_round_trip() -> None:
    state = TrainerState(step=7, consumed_samples=50, steps_per_epoch=(4, 3), epochs=(1, 2), num_updates=3)
    assert TrainerState.model_validate_json(state.model_dump_json()) == state


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="epochs_done"):
        TrainerState.model_validate({"step": 1, "epochs_done": 2})
