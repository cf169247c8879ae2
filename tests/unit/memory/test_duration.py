"""Time of steps, against the paper's and by hand."""

from __future__ import annotations

from typing import Any

import pytest

from spin_components.memory.duration import DataSize, Duration, decoding_s, durations
from spin_components.memory.machines import pod_machine
from spin_components.memory.roofline import GPUS
from spin_components.memory.shape import KNOWN, ModelShape, shape_of_config
from spin_components.memory.work import Workload, longest_allowed
from spin_components.settings.settings import Settings

A100 = GPUS["a100-80g"]


def zephyr() -> ModelShape:
    return shape_of_config(KNOWN["zephyr-7b-sft-full"], what="the test")


def workload(**sections: dict[str, Any]) -> Workload:
    """The paper's: eight GPUs, 64 pairs a step, sequences of 1,024 tokens."""
    values: dict[str, dict[str, Any]] = {
        "model": {"base": "-"},
        "data": {"train": "-", "max_length": 1024, "max_prompt_length": 512, "validation_size": 64},
        "spin": {"max_iterations": 2, "max_epochs": 2, "history": 0},
        "training": {
            "zero_stage": 3,
            "precision": "bf16",
            "micro_batch_size": 8,
            "gradient_checkpointing": True,
            "optimizer": "rmsprop",
        },
        "hardware": {"ranks": 8},
        "placement": {"accelerator": "nvidia.com/gpu"},
    }
    for name, table in sections.items():
        values[name] = {**values.get(name, {}), **table}
    settings = Settings.model_validate(values)
    return Workload(settings, pod_machine(settings, A100.gpu_bytes), longest_allowed(settings))


def by_step(work: Workload, data: DataSize, num_gpus: int = 8) -> dict[str, Duration]:
    return {each.step: each for each in durations(zephyr(), work, A100, data, num_gpus)}


FULL = DataSize(64, prompt=1, actual=10**6, generated=10**6)
"""Pairs whose sequences all have the greatest length."""


def test_the_papers_step_of_64_pairs_takes_ten_seconds() -> None:
    training = by_step(workload(), FULL)["train-epoch"]
    assert training.by == "storage", "one step is less than saving the model"
    assert training.seconds["compute"] == pytest.approx(10.0, rel=0.05)


def test_the_papers_generation_for_64_prompts_takes_six_seconds() -> None:
    data = DataSize(64, prompt=128, actual=256, generated=256)
    seconds = decoding_s(zephyr(), workload(), A100, data, "transformers", num_prompts=8, size=8)
    assert max(seconds.values()) == seconds["memory"] == pytest.approx(6.69, rel=0.05)


def test_history_doubles_the_pairs_of_later_iterations() -> None:
    alone, with_history = (
        by_step(workload(spin={"history": history}), DataSize(64_000, 100, 200, 200)) for history in (0, 1)
    )
    # 2 epochs of 64,000 pairs and 2 of 128,000, against 4 of 64,000: half as much again, but for start and storage
    fixed_s = 4 * (alone["train-epoch"].seconds["start"] + alone["train-epoch"].seconds["storage"])
    totals = [each["train-epoch"].total_s - fixed_s for each in (alone, with_history)]
    assert totals[1] == pytest.approx(1.5 * totals[0])
    assert (alone["train-epoch"].times, alone["validate"].times, alone["generate"].times) == (4, 5, 2)


def test_warm_up_and_controls_train_on_one_answer_a_prompt() -> None:
    data, packed = DataSize(64_000, 100, 200, 200), {"training": {"packing": "on"}}
    alone = by_step(workload(**packed), data)
    with_both = by_step(workload(**packed, warm_up={"max_epochs": 3}, control={"sft": True}), data)
    assert list(with_both) == ["warm-up", "generate", "ref-logprob", "train-epoch", "validate", "control"]
    assert (with_both["warm-up"].times, with_both["control"].times, with_both["validate"].times) == (3, 4, 8)
    # 300 tokens a record instead of 500
    epoch = alone["train-epoch"].seconds["compute"]
    assert with_both["warm-up"].seconds["compute"] == pytest.approx(0.6 * epoch, rel=0.05)
    assert with_both["train-epoch"] == alone["train-epoch"]


def test_the_third_answers_of_later_iterations_are_computed() -> None:
    data = DataSize(64_000, 100, 200, 200)
    packed: dict[str, dict[str, Any]] = {"training": {"packing": "on"}, "spin": {"history": 0}}
    alone, triplets = (by_step(workload(**packed, objective={"loss": loss}), data) for loss in ("logistic", "triplet"))
    for step in ("train-epoch", "ref-logprob"):
        # in the last iteration, which is shown, 700 tokens a pair instead of 500
        seconds = [each[step].seconds["compute"] for each in (alone, triplets)]
        assert seconds[1] == pytest.approx(1.4 * seconds[0], rel=0.05)
    assert triplets["generate"] == alone["generate"]


def test_padding_and_the_slowest_rank_count() -> None:
    data = DataSize(64_000, 100, 200, 200)
    padded, packed = (by_step(workload(training={"packing": on}), data)["train-epoch"] for on in ("off", "on"))
    # packed, a pair has 500 tokens on average and ranks get as many; padded 600 and padding, the last rank the longest
    needed = 1000 * 64 / 8 * 500 * 8 * zephyr().num_active / (0.30 * A100.flops)
    assert packed.seconds["compute"] == pytest.approx(needed, rel=0.05)
    assert padded.seconds["compute"] > 1.5 * needed


def test_pods_that_the_gpus_cannot_hold_at_once_come_in_waves() -> None:
    work = workload(generation={"shards": 8, "engine": "vllm"})
    data = DataSize(64_000, 100, 200, 200)
    few, many = (by_step(work, data, num_gpus)["generate"] for num_gpus in (2, 8))
    assert few.seconds["start"] == 4 * many.seconds["start"]
    assert few.seconds["memory"] == pytest.approx(4 * many.seconds["memory"], rel=0.01)
