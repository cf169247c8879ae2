"""Sizes of forward passes that memory and time are estimated for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest

from spin_components.memory.activations import Batch
from spin_components.memory.check import estimate_steps
from spin_components.memory.inference import forward_batch, validation_batch
from spin_components.memory.shape import KNOWN, shape_of_config
from spin_components.memory.training import training_batches
from spin_components.memory.work import Lengths, Machine, Workload
from spin_components.settings.settings import Settings

LENGTHS = Lengths(prompt=100, actual=300, generated=200)


def work(device: Literal["cuda", "cpu"] = "cuda", lengths: Lengths = LENGTHS, **training: Any) -> Workload:
    sections = {"model": {"base": "m"}, "data": {"train": "d"}, "validation": {"batch_size": 5}}
    training = {"micro_batch_size": 4, "global_batch_size": 8, "gradient_checkpointing": True, **training}
    settings = Settings.model_validate({**sections, "training": training})
    return Workload(settings, Machine(device, is_bf16=True), lengths)


def test_a_packed_micro_batch_has_each_prompt_once() -> None:
    # 4 pairs of 100 + 300 + 200 tokens; the keys of prompt and generated answer are copied for the generated one
    assert forward_batch(work()) == Batch(2400, 2000)
    assert training_batches(work()) == Batch(2400, 2000, repeated=4 * 300)
    assert validation_batch(work()) == Batch(5 * 400, 5 * 300)


def test_a_padded_micro_batch_is_one_pass_with_two_rows_a_pair() -> None:
    on_gpu, on_cpu = work(packing="off"), work("cpu", packing="off")
    # 8 rows of 100 + 300 tokens; on a CPU attention holds the square of each
    assert forward_batch(on_gpu) == training_batches(on_gpu) == Batch(3200, 2000)
    assert forward_batch(on_cpu) == training_batches(on_cpu) == Batch(3200, 2000, squares=8 * 400**2)
    assert validation_batch(on_cpu) == Batch(5 * 400, 5 * 300, squares=5 * 400**2)
    human = replace(on_gpu, lengths=Lengths(100, 300, 0))
    assert training_batches(human) == Batch(4 * 400, 4 * 300)


@pytest.mark.parametrize(
    ("tokens", "packing", "expected"),
    [
        (1200, "auto", Batch(1200, 1000)),  # two pairs of 600
        (900, "auto", Batch(900, 750)),  # one and a half: shorter pairs fill it
        (100, "auto", Batch(600, 500)),  # a pair that is longer has a micro-batch of its own
        (9999, "auto", Batch(2400, 2000)),  # micro_batch_size limits it
        (1600, "off", Batch(1600, 1000)),  # two rows of 400 tokens a pair
    ],
)
def test_a_budget_of_tokens_limits_a_micro_batch(tokens: int, packing: str, expected: Batch) -> None:
    assert forward_batch(work(micro_batch_tokens=tokens, packing=packing)) == expected


def test_what_does_not_fit_is_to_be_reached_by_a_lower_budget() -> None:
    from spin_components.memory.fit import shortages

    shape = shape_of_config(KNOWN["zephyr-7b-sft-full"], what="x")
    short = replace(work(micro_batch_tokens=1200), machine=Machine("cuda", is_bf16=True, device_bytes=2**30))
    estimates = [replace(each, device={"activations": 2**31}) for each in estimate_steps(shape, short)]
    messages = [str(each) for each in shortages(estimates, short) if "train-epoch" in str(each)]
    assert "Try training.micro_batch_tokens below 1200, or data.max_length below 1024" in messages[0]
