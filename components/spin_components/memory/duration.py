"""Time of each step and of a run on GPUs, from operations, bytes, and the share of the peak rates that is reached.

A step takes the longest of the times that arithmetic, memory and network need (see `roofline`), and besides that the
time to start its processes and to read and write its files. Lengths of records are drawn from a log-normal
distribution and put into the micro-batches of training, so that padding and uneven ranks count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from spin_components.algorithm.batch_division import BatchDivision
from spin_components.algorithm.batching import form_batches
from spin_components.algorithm.schedules import resolve_count
from spin_components.algorithm.token_budget import PairLengths
from spin_components.memory.estimate import StepName
from spin_components.memory.roofline import Hardware, exchanged_bytes, gathered_bytes
from spin_components.memory.shape import ModelShape
from spin_components.memory.training import STATE_NUMBERS
from spin_components.memory.work import Workload

COMPUTE_SHARE = 0.30
"""Share of the peak operations that training and scoring reach, over the tokens that are computed, padding included.

From the paper's 10 s for 64 pairs on eight A100 (arXiv:2401.01335, appendix B), taken as two sequences of 1,024 tokens
a pair: 8 * 7.24e9 * 131,072 operations / (8 * 312e12 * 10 s) = 0.30. Llama 3 was trained at 0.38 to 0.43
(arXiv:2407.21783, table 4), with a larger model and other code."""

DECODE_SHARE = {"transformers": 0.28, "vllm": 0.6}
"""Share of the memory's bandwidth that decoding reaches. `transformers`: from the paper's 6.69 s to generate for 64
prompts on eight A100, taken as 8 sequences a GPU of 256 new tokens: 256 steps of 7.24 ms / 6.69 s = 0.28. `vllm`: a
typical value, not measured here."""

START_S = {"generate": 20.0, "ref-logprob": 20.0, "train-epoch": 30.0, "validate": 20.0}
"""Seconds until a step's processes have imported their libraries; a typical value, not measured on a GPU."""

VLLM_START_S = 60.0
"""Seconds that vLLM takes to start beyond that: 30 to 90 s on a CPU (`engine.open`)."""

STORAGE_RATE = 500e6
"""Bytes a second that a step reads from storage or writes to it; a typical value."""

_SPREAD = 0.6
"""Standard deviation of the logarithm of a length."""

_NUM_DRAWN = 64
"""Global batches whose lengths are drawn."""


@dataclass(frozen=True, slots=True)
class DataSize:
    """Records of a run.

    Attributes:
        num_prompts: that are trained on in an iteration.
        prompt, actual, generated: mean lengths in tokens; no generated answers at 0.
        proto: mean length of iteration 0's answers where they are trained on besides; none at 0.
    """

    num_prompts: int
    prompt: int
    actual: int
    generated: int
    proto: int = 0


@dataclass(frozen=True, slots=True)
class Duration:
    """Time of a step.

    Attributes:
        step: name of the step.
        seconds: of one execution (of all shards, an epoch, a validation), by what it is spent on; `compute`, `memory`
            and `network` overlap, so that the longest of them counts.
        times: executions in the run.
        total_s: of all of them.
    """

    step: StepName
    seconds: dict[str, float]
    times: int
    total_s: float

    @property
    def one_s(self) -> float:
        """Seconds of one execution."""
        return _duration_of(self.seconds)

    @property
    def by(self) -> str:
        """What most of the time is spent on."""
        return max(self.seconds, key=lambda name: self.seconds[name])


def durations(shape: ModelShape, work: Workload, hardware: Hardware, data: DataSize, num_gpus: int) -> list[Duration]:
    """Estimate the time of each step.

    Args:
        shape: of the model.
        work: settings with a resolved ZeRO stage, and the machine.
        hardware: the GPUs.
        data: the records.
        num_gpus: that all pods of the run have together, at most.
    """
    work = work if shape.packs else work.padded()
    spin = work.settings.spin
    iterations = range(spin.max_iterations)
    generating = _generating(shape, work, hardware, data, num_gpus)
    pairs = [data.num_prompts * (1 + min(t, spin.history)) for t in iterations]
    triplets = replace(data, proto=data.generated)
    parts = [triplets if work.settings.objective.answers(t) > 2 else data for t in iterations]  # of each iteration
    scoring = [_scoring(shape, work, hardware, part, num, num_gpus) for part, num in zip(parts, pairs, strict=True)]
    training = [_training(shape, work, hardware, part, num) for part, num in zip(parts, pairs, strict=True)]
    epochs = [spin.epochs(t) for t in iterations]
    warm_up, controls = work.settings.warm_up.max_epochs, len(epochs) if work.settings.control.sft else 0
    num_validations = 1 + sum(epochs) + bool(warm_up) + controls
    validating = _validating(shape, work, hardware, data, num_gpus)
    once = len(iterations)
    human = replace(data, generated=0)  # supervised fine-tuning has one answer a prompt
    warming = _training(shape, work, hardware, human, data.num_prompts)
    controlling = [_training(shape, work, hardware, human, num) for num in pairs[:controls]]
    return [
        *([Duration("warm-up", warming, warm_up, warm_up * _duration_of(warming))] if warm_up else []),
        Duration("generate", generating, once, once * _duration_of(generating)),
        Duration("ref-logprob", scoring[-1], once, sum(map(_duration_of, scoring))),
        _of_epochs("train-epoch", training, epochs),
        Duration("validate", validating, num_validations, num_validations * _duration_of(validating)),
        *([_of_epochs("control", controlling, epochs)] if controls else []),
    ]


def _of_epochs(step: StepName, seconds: Sequence[dict[str, float]], epochs: Sequence[int]) -> Duration:
    """Time of training, from that of an epoch of each iteration and the number of epochs."""
    total_s = sum(num * _duration_of(each) for num, each in zip(epochs, seconds, strict=True))
    return Duration(step, seconds[-1], sum(epochs), total_s)


def _duration_of(seconds: dict[str, float]) -> float:
    overlapping = [seconds.get(name, 0.0) for name in ("compute", "memory", "network")]
    return max(overlapping) + seconds.get("storage", 0.0) + seconds.get("start", 0.0)


def _generating(
    shape: ModelShape, work: Workload, hardware: Hardware, data: DataSize, num_gpus: int
) -> dict[str, float]:
    generation = work.settings.generation
    engine = generation.tensor_parallel
    pod = work.settings.num_gpus("generate")
    used = min(num_gpus, pod * generation.shards)
    num_engines = max(used // engine, 1)
    name = "transformers" if generation.engine == "transformers" else "vllm"
    size = generation.batch_size if name == "transformers" else max(generation.batch_size, 256)
    seconds = decoding_s(shape, work, hardware, data, name, math.ceil(data.num_prompts / num_engines), size, engine)
    waves = math.ceil(generation.shards * pod / max(num_gpus, pod))
    start = START_S["generate"] + (VLLM_START_S if name == "vllm" else 0.0)
    return {**seconds, "storage": waves * _reading_s(shape), "start": waves * start}


def decoding_s(
    shape: ModelShape,
    work: Workload,
    hardware: Hardware,
    data: DataSize,
    engine: str,
    num_prompts: int,
    size: int,
    num_gpus: int = 1,
) -> dict[str, float]:
    """Seconds that one engine takes to answer prompts, by resource.

    Args:
        shape: of the model.
        work: settings and machine.
        hardware: the GPUs.
        data: mean lengths.
        engine: its name.
        num_prompts: of this engine.
        size: sequences at a time.
        num_gpus: that divide the model.
    """
    number = 2 if work.machine.is_bf16 else 4
    size = min(size, num_prompts)
    steps = max(data.generated, math.ceil(num_prompts * data.generated / size))
    cache = size * (data.prompt + data.generated // 2) * 2 * number * shape.num_layers * shape.keys
    reading = (number * shape.num_parameters + cache) / num_gpus / hardware.memory_rate
    decoded = 2 * shape.num_active * size / num_gpus / hardware.flops
    prefilled = 2 * shape.num_active * num_prompts * data.prompt / num_gpus / hardware.flops
    return {
        "compute": (steps * decoded + prefilled) / COMPUTE_SHARE,
        "memory": steps * reading / DECODE_SHARE[engine],
    }


def _scoring(
    shape: ModelShape, work: Workload, hardware: Hardware, data: DataSize, num_pairs: int, num_gpus: int
) -> dict[str, float]:
    pod, shards = work.settings.num_gpus("ref-logprob"), work.settings.generation.shards
    used = max(min(num_gpus, pod * shards), 1)
    tokens = np.mean([sum(each) for each in _tokens_by_rank(work, data, 1)]) / work.settings.training.global_batch_size
    waves = math.ceil(shards * pod / max(num_gpus, pod))
    passes = num_pairs / used / work.pairs_at_once
    return {
        "compute": 2 * shape.num_active * float(tokens) * num_pairs / used / hardware.flops / COMPUTE_SHARE,
        "network": passes * gathered_bytes(shape, work, "ref-logprob") / hardware.link_rate,
        "storage": waves * _reading_s(shape),
        "start": waves * START_S["ref-logprob"],
    }


def _training(
    shape: ModelShape, work: Workload, hardware: Hardware, data: DataSize, num_pairs: int
) -> dict[str, float]:
    """Time of an epoch: each step waits for the rank with the most tokens."""
    training, ranks = work.settings.training, work.settings.hardware.world_size
    num_batches = math.ceil(num_pairs / training.global_batch_size)
    num_steps = resolve_count(training.limit_train_batches, num_batches)
    slowest = float(np.mean([max(each) for each in _tokens_by_rank(work, data, ranks)]))
    num_micro = max(training.global_batch_size // (training.micro_batch_size * ranks), 1)
    if training.micro_batch_tokens:
        num_micro = max(num_micro, math.ceil(slowest / training.micro_batch_tokens))
    rate = hardware.network_rate if work.settings.hardware.nodes > 1 else hardware.link_rate
    operations = (8 if training.gradient_checkpointing else 6) * shape.num_active * slowest
    saved = (4 + 4 * STATE_NUMBERS[training.optimizer]) * shape.num_parameters
    return {
        "compute": num_steps * operations / hardware.flops / COMPUTE_SHARE,
        "network": num_steps * num_micro * exchanged_bytes(shape, work, num_micro) * (ranks - 1) / ranks / rate,
        "storage": _reading_s(shape) + saved / STORAGE_RATE,
        "start": START_S["train-epoch"],
    }


def _validating(
    shape: ModelShape, work: Workload, hardware: Hardware, data: DataSize, num_gpus: int
) -> dict[str, float]:
    validation, size = work.settings.validation, work.settings.data.validation_size
    used = max(min(num_gpus, work.settings.num_gpus("validate")), 1)
    num_records = resolve_count(size, data.num_prompts)
    scored = 2 * shape.num_active * num_records * (data.prompt + data.actual) / used / hardware.flops / COMPUTE_SHARE
    gathering = gathered_bytes(shape, work, "validate") / hardware.link_rate  # of a pass
    seconds = {"compute": scored, "memory": 0.0, "network": num_records / used / validation.batch_size * gathering}
    if num_samples := math.ceil(min(validation.num_samples, num_records) / used):
        batch = work.settings.generation.batch_size
        decoding = decoding_s(shape, work, hardware, data, "transformers", num_samples, batch)
        decoding["network"] = data.generated * gathering
        seconds = {name: seconds[name] + 2 * decoding[name] for name in seconds}  # sampled, and greedy
    return {**seconds, "storage": 3 * _reading_s(shape), "start": START_S["validate"]}


def _tokens_by_rank(work: Workload, data: DataSize, ranks: int) -> list[list[int]]:
    """Tokens that each rank computes in a global batch, of `_NUM_DRAWN` batches with drawn lengths."""
    training, limit = work.settings.training, work.settings.data.max_length
    num_pairs = _NUM_DRAWN * training.global_batch_size
    random = np.random.default_rng(0)
    means = [mean for mean in (data.prompt, data.actual, data.generated, data.proto) if mean]
    prompts, *answers = (_draw(random, mean, num_pairs) for mean in means)
    prompts = np.minimum(prompts, limit - 1)
    answers = [np.minimum(each, limit - prompts) for each in answers]
    shapes = list(zip(prompts.tolist(), *(each.tolist() for each in answers), strict=True))
    batches = form_batches(num_pairs, training.global_batch_size, 0)
    if work.is_packed:  # ranks get as many tokens each, see `BatchDivision`
        sums = [_num_computed([shapes[i] for i in batch], is_packed=True) for batch in batches]
        return [[-(-tokens // ranks)] * ranks for tokens in sums]

    once, num_answers = prompts + np.sum(answers, axis=0), [len(answers)] * num_pairs
    of_pairs = PairLengths(once, prompts, np.max(answers, axis=0), num_answers)
    division = BatchDivision(of_pairs, training, ranks, is_packed=False)

    def computed(batch: Sequence[int], rank: int) -> int:
        micros = division.of_rank(batch, rank)
        return sum(_num_computed([shapes[i] for i in micro.pairs], is_packed=False) for micro in micros)

    return [[computed(batch, rank) for rank in range(ranks)] for batch in batches]


def _draw(random: np.random.Generator, mean: int, num: int) -> np.ndarray:
    """Lengths of at least 1 from a log-normal distribution with this mean."""
    drawn = random.lognormal(math.log(mean) - _SPREAD**2 / 2, _SPREAD, num)
    return np.maximum(np.rint(drawn).astype(np.int64), 1)


def _num_computed(pairs: Sequence[tuple[int, ...]], *, is_packed: bool) -> int:
    """Tokens of a micro-batch, as `algorithm.logprobs` computes it: packed, or a padded row for each answer."""
    if is_packed:
        return sum(map(sum, pairs))
    sequences = [(prompt, answer) for prompt, *answers in pairs for answer in answers]
    return len(sequences) * (max(prompt for prompt, _ in sequences) + max(answer for _, answer in sequences))


def _reading_s(shape: ModelShape) -> float:
    return 4 * shape.num_parameters / STORAGE_RATE
