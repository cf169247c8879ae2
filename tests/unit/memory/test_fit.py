from __future__ import annotations

from typing import Any

import pytest

from spin_components.errors import ConfigError
from spin_components.memory.activations import Batch
from spin_components.memory.check import check_memory, estimate_steps
from spin_components.memory.estimate import Estimate
from spin_components.memory.fit import shortages
from spin_components.memory.inference import forward_batch
from spin_components.memory.shape import KNOWN, ModelShape, shape_of_config
from spin_components.memory.training import training_batches
from spin_components.memory.work import Lengths, Machine, Workload, longest_allowed, longest_of
from spin_components.memory.zero_stage import resolve_zero_stage
from spin_components.settings.settings import Settings

GIB = 2**30
SEVEN = shape_of_config(KNOWN["zephyr-7b-sft-full"], what="x")


def settings_of(**sections: dict[str, Any]) -> Settings:
    values: dict[str, Any] = {"model": {"base": "m"}, "data": {"train": "d", "max_length": 2048}}
    for name, table in sections.items():
        values[name] = {**values.get(name, {}), **table}
    return Settings.model_validate(values)


def gpu_work(gib: int = 80, **sections: dict[str, Any]) -> Workload:
    settings = settings_of(**sections)
    return Workload(settings, Machine("cuda", is_bf16=True, device_bytes=gib * GIB), longest_allowed(settings))


def of_step(estimates: list[Estimate], step: str) -> Estimate:
    return next(each for each in estimates if each.step == step)


def train(work: Workload, shape: ModelShape = SEVEN) -> Estimate:
    return of_step(estimate_steps(shape, work), "train-epoch")


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "state"),
    # float32 on 8 ranks: all, or an eighth, of 7.24e9 x 4 bytes; AdamW has two numbers a parameter. Stage 1 keeps all
    # gradients until they are divided
    [(0, 8, 8, 16), (1, 8, 9, 2), (2, 8, 1, 2), (3, 1, 1, 2)],
)
def test_zero_divides_state_then_gradients_then_weights(stage: int, weights: int, gradients: int, state: int) -> None:
    training = {"zero_stage": stage, "gradient_checkpointing": True}
    parts = train(gpu_work(training=training, hardware={"ranks": 8})).device
    eighth = 4 * SEVEN.num_parameters / 8
    found = [parts[name] / eighth for name in ("weights", "gradients", "optimizer state")]
    assert found == pytest.approx([weights, gradients, state])


def test_an_offloaded_optimizer_moves_from_gpu_to_host_memory() -> None:
    base = {"zero_stage": 3, "gradient_checkpointing": True}
    on_gpu = train(gpu_work(training=base, hardware={"ranks": 8}))
    offloaded = train(gpu_work(training={**base, "offload_optimizer": True}, hardware={"ranks": 8}))
    assert "optimizer state" not in offloaded.device
    assert offloaded.device_bytes < on_gpu.device_bytes
    # each rank: an eighth of master weights, gradients and two numbers of state
    moved = sum(offloaded.host[name] for name in ("master weights", "gradients", "optimizer state"))
    assert moved == pytest.approx(4 * 4 * SEVEN.num_parameters / 8)


def test_checkpointing_saves_one_block_and_the_inputs_of_all() -> None:
    # 1 pair of 1 + 2047 and 1 + 256 tokens, padded: 2305 tokens of 4096 float32 for each of 32 blocks
    sections: dict[str, Any] = {"hardware": {"ranks": 64}, "training": {"zero_stage": 3}}  # backward is the peak
    whole = train(gpu_work(**sections)).device["activations"]
    sections["training"]["gradient_checkpointing"] = True
    less = train(gpu_work(**sections)).device["activations"]
    assert 32 * 2305 * 4096 * 4 < less < whole / 5


def test_memory_grows_with_pairs_and_tokens_and_shrinks_with_chunks() -> None:
    settings = settings_of(training={"micro_batch_size": 4, "global_batch_size": 64})
    machine = Machine("cpu", is_bf16=False)
    sizes = [
        train(Workload(settings, machine, lengths, logit_bytes=size)).host_bytes
        for lengths, size in (
            (Lengths(10, 100, 50), 2**20),
            (Lengths(10, 100, 50), 2**28),
            (Lengths(10, 200, 50), 2**28),
        )
    ]
    assert sizes == sorted(set(sizes))


def test_the_longest_pair_of_the_data() -> None:
    settings = settings_of(data={"max_length": 100, "max_prompt_length": 60}, generation={"max_new_tokens": 30})
    # 10 + 50 + 30 = 90; 60 + 20 + 30 = 110; 90 + 5 + what is left of 100 = 105
    assert longest_of(settings, [(10, 50), (60, 20), (90, 5)]) == Lengths(60, 20, 30)
    assert longest_allowed(settings) == Lengths(1, 99, 30)


def test_three_answers_a_pair_take_the_memory_of_a_third_sequence() -> None:
    more = {"data": {"max_length": 100, "max_prompt_length": 60}, "generation": {"max_new_tokens": 30}}
    settings = settings_of(objective={"loss": "triplet"}, **more)
    assert longest_of(settings, [(60, 20), (10, 50)]) == Lengths(60, 20, 30, 2)
    assert longest_allowed(settings) == Lengths(1, 99, 30, 2)
    assert longest_allowed(settings_of(objective={"loss": "triplet"}, spin={"max_iterations": 1})).num_generated == 1
    lengths, machine = Lengths(60, 20, 30, 2), Machine("cpu", is_bf16=False)
    assert (lengths.answers, lengths.pair) == (20 + 2 * 30, 60 + 20 + 2 * 30)
    packed, padded = (
        Workload(
            settings_of(training={"packing": packing, "micro_batch_size": 4, "global_batch_size": 64}), machine, lengths
        )
        for packing in ("on", "off")
    )
    assert training_batches(packed) == Batch(4 * 140, 4 * 80, repeated=4 * 2 * 90)
    # padded, a row of the longest length for each answer
    assert training_batches(padded) == forward_batch(padded) == Batch(12 * 90, 4 * 80, squares=12 * 90**2)


def test_a_shortage_names_the_largest_parts_and_settings_to_change() -> None:
    fits = gpu_work(training={"zero_stage": 3, "gradient_checkpointing": True}, hardware={"ranks": 8})
    assert shortages(estimate_steps(SEVEN, fits), fits) == []
    alone = gpu_work(24)
    by_step = {each.message.split()[0]: each for each in shortages(estimate_steps(SEVEN, alone), alone)}
    assert by_step["train-epoch"].is_certain
    assert "of one GPU, there are 24.0 GiB (optimizer state 54.0 GiB" in by_step["train-epoch"].message
    assert "training.offload_optimizer = true" in by_step["train-epoch"].remedy
    assert "training.gradient_checkpointing = true" in by_step["train-epoch"].remedy
    assert "train-epoch" not in {each.message.split()[0] for each in shortages(estimate_steps(SEVEN, fits), fits)}


def test_a_pods_memory_is_compared_with_the_sum_over_its_processes() -> None:
    settings = settings_of(hardware={"ranks": 8})
    machine = Machine("cuda", is_bf16=True, host_bytes={"train-epoch": 64 * GIB})
    work = Workload(settings, machine, longest_allowed(settings))
    (shortage,) = shortages(estimate_steps(SEVEN, work), work)
    assert "of memory for 8 processes, there are 64.0 GiB" in shortage.message
    assert shortage.remedy.endswith("or more memory")


@pytest.mark.parametrize(("share", "is_certain"), [(0.94, None), (0.96, False), (1.14, False), (1.16, True)])
def test_a_shortage_is_certain_only_beyond_the_estimates_accuracy(share: float, is_certain: bool | None) -> None:
    work = gpu_work()
    (estimate,) = (each for each in estimate_steps(SEVEN, work) if each.step == "ref-logprob")
    tight = Workload(work.settings, Machine("cuda", True, int(estimate.device_bytes / share)), work.lengths)
    assert [each.is_certain for each in shortages([estimate], tight)] == [is_certain][: is_certain is not None]


def test_memory_used_by_other_processes_gives_a_warning_only() -> None:
    settings = settings_of(hardware={"device": "cpu"})
    estimate = of_step(estimate_steps(SEVEN, Workload(settings, Machine("cpu", False), Lengths(9, 9, 9))), "validate")
    machine = Machine(
        "cpu", False, host_bytes={"validate": 2 * estimate.host_bytes}, free_bytes=estimate.host_bytes - 1
    )
    (shortage,) = shortages([estimate], Workload(settings, machine, Lengths(9, 9, 9)))
    assert not shortage.is_certain
    assert "of them free now" in shortage.message


def test_memory_check_refuses_warns_or_is_off() -> None:
    warnings: list[str] = []
    with pytest.raises(ConfigError, match=r"^generate needs about .*hardware\.memory_check = 'warn'$"):
        check_memory(SEVEN, gpu_work(8, generation={"engine": "transformers", "batch_size": 1}), warnings.append)
    check_memory(SEVEN, gpu_work(8, hardware={"memory_check": "warn"}), warnings.append)
    assert {text.split()[0] for text in warnings} >= {"ref-logprob", "train-epoch", "validate"}
    warnings.clear()
    check_memory(SEVEN, gpu_work(8, hardware={"memory_check": "off"}), warnings.append)
    assert warnings == []


@pytest.mark.parametrize(("gib", "stage"), [(400, 0), (95, 1), (65, 2), (40, 3), (1, 3), (0, 2)])
def test_auto_resolves_to_the_lowest_stage_that_fits(gib: int, stage: int) -> None:
    training = {"zero_stage": "auto", "gradient_checkpointing": True}
    work = resolve_zero_stage(SEVEN, gpu_work(gib, training=training, hardware={"ranks": 8}))
    assert work.settings.training.zero_stage == stage


def test_a_given_stage_is_kept_and_offloading_needs_stage_1() -> None:
    assert resolve_zero_stage(SEVEN, gpu_work(1, training={"zero_stage": 1})).settings.training.zero_stage == 1
    training = {"zero_stage": "auto", "offload_optimizer": True, "gradient_checkpointing": True}
    assert (
        resolve_zero_stage(SEVEN, gpu_work(400, training=training, hardware={"ranks": 8})).settings.training.zero_stage
        == 1
    )
