from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from spin_components.data.shards import AnswerLoss, Prompt
from spin_components.errors import NonFiniteError
from spin_components.model.compute import Compute
from spin_components.model.scoring import answer_losses, distributed_val_loss, mean_nll, validation_batches
from spin_components.settings.run import ValidationSettings
from support import bounds

pytestmark = pytest.mark.usefixtures("in_float64")

CPU = Compute(torch.device("cpu"), "float32")
PROMPTS = [
    Prompt(0, [5, 6, 7, 8, 9], [10, 11, 12, 2], True),
    Prompt(1, [20], [21], False),
    Prompt(2, [30, 31, 32], [33, 34, 2], True),
    Prompt(3, [40, 41], [42, 2], True),
    Prompt(4, [50, 51], [52, 53, 54, 55, 56, 57], False),
]


def batches_of(batch_size: int, limit: int | float = 1.0) -> list[list[int]]:
    settings = ValidationSettings(batch_size=batch_size, limit_val_batches=limit)
    return [[prompt.index for prompt in batch] for batch in validation_batches(PROMPTS, settings)]


def test_batches_are_alike_in_length() -> None:
    # tokens of prompt and answer: 9, 2, 6, 4, 8
    assert batches_of(2) == [[1, 3], [2, 4, 0]]  # one left over joins the batch before it


def test_a_limit_keeps_the_first_records() -> None:
    assert batches_of(2, 2) == [[1, 3], [2, 0]]  # two batches of two: the first four records
    assert batches_of(2, 0.4) == [[1, 0]]  # 0.4 of three batches is one
    assert batches_of(2, 99) == batches_of(2)


def test_the_mean_is_over_tokens_and_not_over_answers() -> None:
    # (6 + 1) / (3 + 1)
    assert mean_nll([AnswerLoss(0, 6.0, 3), AnswerLoss(1, 1.0, 1)]) == 1.75


def test_losses_are_those_of_the_answers_alone(make_random_llama: Callable[[], Any]) -> None:
    model = make_random_llama()
    batches = validation_batches(PROMPTS, ValidationSettings(batch_size=2))
    found = {loss.index: loss for losses in answer_losses(model, batches, CPU) for loss in losses}
    assert found.keys() == {0, 1, 2, 3, 4}
    for prompt in PROMPTS:
        ids = torch.tensor([prompt.prompt_ids + prompt.actual_ids])
        labels = ids.clone()
        labels[0, : len(prompt.prompt_ids)] = -100  # what transformers leaves out of its own mean
        with torch.no_grad():
            expected = model(input_ids=ids, labels=labels).loss * len(prompt.actual_ids)
        assert found[prompt.index].nll == pytest.approx(float(expected), abs=bounds.of_logprob(model, num_tokens=6))
        assert found[prompt.index].num_tokens == len(prompt.actual_ids)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_share_the_batches_and_make_as_many_passes(make_random_llama: Callable[[], Any], ranks: int) -> None:
    model = make_random_llama()
    batches = validation_batches(PROMPTS, ValidationSettings(batch_size=2))
    passes = [0] * ranks
    sums: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sums.append(tensor.clone())
        return tensor

    def share(rank: int) -> None:
        def count(*_: object) -> None:
            passes[rank] += 1

        with model.register_forward_hook(count):
            distributed_val_loss(model, batches, CPU, rank=rank, ranks=ranks, reduce=lambda tensor: keep(tensor) + 1)

    for rank in range(ranks):
        share(rank)
    assert len(set(passes)) == 1
    nll, tokens = torch.stack(sums).sum(0).tolist()
    assert tokens == 4 + 1 + 3 + 2 + 6
    alone = [loss for losses in answer_losses(model, batches, CPU) for loss in losses]
    assert nll / tokens == pytest.approx(mean_nll(alone), abs=bounds.of_logprob(model, num_tokens=6))


def test_a_loss_that_is_not_finite_names_its_record(make_random_llama: Callable[[], Any]) -> None:
    model = make_random_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[33] = math.nan
    batches = [[prompt] for prompt in PROMPTS]
    with pytest.raises(NonFiniteError, match=r"validation records \[2\] is not finite"):
        list(answer_losses(model, batches, CPU))


@pytest.mark.parametrize("limit", [0, 0.0])
def test_a_limit_that_leaves_nothing_to_validate_is_refused(limit: int | float) -> None:
    # without an answer there is no mean, and no val_loss to choose an iteration by
    with pytest.raises(ValidationError):
        ValidationSettings(limit_val_batches=limit)
