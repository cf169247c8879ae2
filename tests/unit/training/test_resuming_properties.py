"""Stopping anywhere and going on is the same as not stopping: counters, order, and once with a model."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_components.algorithm.batching import derive_seed, form_batches, micro_batches, order_batches
from spin_components.algorithm.trainer_state import TrainerState
from spin_components.training.parts import Parts, write_parts
from spin_components.training.torch_backend import TorchBackend
from support.families import model_of
from unit.training.test_train_step import PAIRS, backend_of, scored, stepped

Plan = Sequence[tuple[int, int]]
"""Pairs and epochs of each iteration."""

plans = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), min_size=1, max_size=3)


def steps(plan: Plan, seed: int, state: TrainerState, num_done: int = 0) -> Iterator[tuple[TrainerState, Any]]:
    """The state after each step and the batch it took, from a state on; `num_done`: steps of its epoch behind it."""
    iteration, epoch = (state.iteration, state.epoch) if state.steps_per_epoch else (0, 0)
    while iteration < len(plan):
        num_pairs, epochs = plan[iteration]
        batches = form_batches(num_pairs, 2, derive_seed(seed, "batches", iteration, 0))
        state = state.begin_iteration(iteration, len(batches), epochs)
        while epoch < epochs:
            order = order_batches(len(batches), derive_seed(seed, "order", iteration, epoch))
            for number in order[num_done:]:
                state = state.after_step(len(batches[number]))
                yield state, (iteration, epoch, batches[number])
            epoch, num_done = epoch + 1, 0
        iteration, epoch = iteration + 1, 0


@settings(max_examples=60)
@given(plan=plans, seed=st.integers(0, 2**31 - 1), data=st.data())
def test_counters_and_order_go_on_from_any_step_with_nothing_but_the_saved_state(
    plan: Plan, seed: int, data: st.DataObject
) -> None:
    whole = list(steps(plan, seed, TrainerState()))
    stop = data.draw(st.integers(1, len(whole)))
    saved = TrainerState.model_validate_json(whole[stop - 1][0].model_dump_json())
    before = sum(num * epochs for num, epochs in zip(saved.steps_per_epoch, saved.epochs, strict=True))
    if saved.step == before:  # the last step of an iteration: the next one begins
        rest = list(steps(plan, seed, saved))
    else:
        current = saved.iteration
        earlier = zip(saved.steps_per_epoch[:current], saved.epochs[:current], strict=True)
        within = saved.step - sum(num * epochs for num, epochs in earlier)
        rest = list(steps(plan, seed, saved, num_done=within % saved.steps_per_epoch[current]))
    assert whole[:stop] + rest == whole
    assert whole[-1][0].consumed_samples == sum(num_pairs * epochs for num_pairs, epochs in plan)


def trained(backend: TorchBackend, data: Any, start: int, end: int) -> list[float]:
    """Losses of some of the steps, each over the pairs two by two in an order of its own."""
    lengths = [pair.num_tokens for pair in PAIRS]
    found = []
    for step in range(start, end):
        batch = form_batches(len(PAIRS), 4, seed=step)[0]
        micros = micro_batches(batch, lengths, micro_batch_size=2, rank=0, ranks=1, num=2)
        found.append(stepped(backend, data, micros, batch=batch, lr=1e-2 / (step + 1))["loss"])
    return found


@settings(max_examples=6)
@given(stop=st.integers(0, 5), optimizer=st.sampled_from(["adamw", "rmsprop"]))
def test_a_model_trained_in_two_parts_is_bit_for_bit_the_one_trained_in_one(stop: int, optimizer: str) -> None:
    changes = {"optimizer": optimizer, "weight_decay": 0.1}
    whole = backend_of(copy.deepcopy(model_of("llama")), **changes)
    data = scored(whole.model, 1.0, -1.0, 0.5)
    losses = trained(whole, data, 0, 5)
    first = backend_of(copy.deepcopy(model_of("llama")), **changes)
    before = trained(first, data, 0, stop)
    second = backend_of(copy.deepcopy(model_of("llama")), **changes)
    second.model.load_state_dict({name: tensor.clone() for name, tensor in first.model.state_dict().items()})
    with tempfile.TemporaryDirectory() as folder:
        write_parts(Path(folder), "optimizer", first.optimizer_parts())
        second.load_optimizer(Parts(sorted(Path(folder).iterdir())), num_updates=stop)
    assert before + trained(second, data, stop, 5) == losses
    expected = whole.model.state_dict()
    assert [name for name, tensor in second.model.state_dict().items() if not torch.equal(tensor, expected[name])] == []
