from __future__ import annotations

import pytest
from pydantic import ValidationError

from spin_components.algorithm.trainer_state import TrainerState


@pytest.mark.parametrize("steps_per_epoch", [1, 5])
@pytest.mark.parametrize("max_epochs", [1, 3])
def test_nemos_formulas_hold_where_all_iterations_have_as_many_steps(steps_per_epoch: int, max_epochs: int) -> None:
    for step in range(4 * steps_per_epoch * max_epochs):
        state = TrainerState(step=step, steps_per_epoch=(steps_per_epoch,) * 4, max_epochs=max_epochs)
        assert state.epoch == (step // steps_per_epoch) % max_epochs
        assert state.iteration == (step // steps_per_epoch) // max_epochs


def test_iterations_of_different_length_by_hand() -> None:
    # two epochs of 3 steps, then two epochs of 1 step, then two epochs of 2
    places = [(0, 0)] * 3 + [(0, 1)] * 3 + [(1, 0), (1, 1)] + [(2, 0)] * 2 + [(2, 1)] * 2 + [(3, 0)]
    states = [TrainerState(step=step, steps_per_epoch=(3, 1, 2), max_epochs=2) for step in range(len(places))]
    assert [(state.iteration, state.epoch) for state in states] == places


def test_the_newest_iteration_starts_where_those_before_it_end() -> None:
    # 2 epochs * (3 + 1) steps
    assert TrainerState(step=9, steps_per_epoch=(3, 1, 2), max_epochs=2).iteration_start == 8
    assert TrainerState(steps_per_epoch=(3,), max_epochs=2).iteration_start == 0
    assert TrainerState().iteration_start == 0


def test_counters_go_on_from_step_to_step_and_iteration_to_iteration() -> None:
    state = TrainerState(max_epochs=1).begin_iteration(0, 2)
    state = state.after_step(8).after_step(5)
    assert (state.step, state.consumed_samples, state.iteration, state.epoch) == (2, 13, 1, 0)
    state = state.begin_iteration(1, 4).after_step(8)
    assert (state.step, state.consumed_samples, state.iteration, state.steps_per_epoch) == (3, 21, 1, (2, 4))


def test_beginning_an_iteration_again_forgets_what_was_thought_of_it_and_later_ones() -> None:
    state = TrainerState(step=4, steps_per_epoch=(4, 9, 9))
    assert state.begin_iteration(1, 3).steps_per_epoch == (4, 3)


def test_states_survive_json() -> None:
    state = TrainerState(step=7, consumed_samples=50, steps_per_epoch=(4, 3), max_epochs=2)
    assert TrainerState.model_validate_json(state.model_dump_json()) == state


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="epochs_done"):
        TrainerState.model_validate({"step": 1, "epochs_done": 2})
