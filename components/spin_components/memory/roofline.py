"""What is expected to bound each step on given hardware: arithmetic, memory traffic or the network.

A roofline (Williams, Waterman and Patterson, 2009): a step takes at least as long as each of these alone would, and the
longest is the bound. P parameters, B bytes a second. Training computes 6 P operations a token and forward passes 2 P
(Kaplan et al., arXiv:2001.08361, section 2.1), 8 P where blocks are computed again. Decoding reads all weights and the
cache once a token of each of its sequences. Under ZeRO-3 a rank receives the weights twice (three times where blocks
are computed again) and sends gradients once in every micro-batch; under ZeRO 0 to 2 it sends and receives gradients
once a micro-batch (arXiv:1910.02054, section 7), and stages 1 and 2 gather the weights after the update.
"""

from __future__ import annotations

from dataclasses import dataclass

from spin_components.memory.estimate import StepName
from spin_components.memory.shape import ModelShape
from spin_components.memory.training import zero_stage
from spin_components.memory.work import Work


@dataclass(frozen=True, slots=True)
class Hardware:
    """A GPU and what connects it, by its maker's data sheet.

    Attributes:
        name: of the GPU.
        gpu_bytes: of memory.
        flops: dense bf16 operations a second.
        memory_rate: bytes a second of its memory.
        link_rate: bytes a second to and from the other GPUs of its node, one way.
        network_rate: to and from other nodes, one way, a GPU.
    """

    name: str
    gpu_bytes: int
    flops: float
    memory_rate: float
    link_rate: float
    network_rate: float


GPUS = {
    "a100-80g": Hardware("A100 80 GB SXM", 80 * 10**9, 312e12, 2.0e12, 300e9, 25e9),
    "h100-80g": Hardware("H100 80 GB SXM", 80 * 10**9, 989e12, 3.35e12, 450e9, 50e9),
    "h200": Hardware("H200 SXM", 141 * 10**9, 989e12, 4.8e12, 450e9, 50e9),
}
"""Data sheets' figures; 200 and 400 Gbit/s of network a GPU."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Least seconds of one unit of a step's work, by what they go to.

    Attributes:
        unit: of work, in words.
        seconds: `compute`, `memory` and `network`.
    """

    step: StepName
    unit: str
    seconds: dict[str, float]

    @property
    def by(self) -> str:
        """What takes longest."""
        return max(self.seconds, key=lambda name: self.seconds[name])


def bounds(shape: ModelShape, work: Work, hardware: Hardware) -> list[Bound]:
    """What bounds each step on such GPUs."""
    return [
        _generating(shape, work, hardware),
        _scoring(shape, work, hardware, "ref-logprob", work.settings.training.micro_batch_size, work.lengths.pair),
        _training(shape, work, hardware),
        _scoring(
            shape,
            work,
            hardware,
            "validate",
            work.settings.validation.batch_size,
            work.lengths.prompt + work.lengths.actual,
        ),
    ]


def _generating(shape: ModelShape, work: Work, hardware: Hardware) -> Bound:
    """One token of every sequence of a full batch, their caches half full."""
    generation, ranks = work.settings.generation, work.settings.generation.tensor_parallel
    number, size = 2 if work.machine.is_bf16 else 4, generation.batch_size
    cache = size * work.settings.data.max_length // 2 * 2 * number * shape.num_layers * shape.keys
    exchanged = 2 * shape.num_layers * shape.hidden * number * size * 2 * (ranks - 1) / ranks
    return Bound(
        "generate",
        f"a token of each of {size} sequences",
        {
            "compute": 2 * shape.num_parameters * size / ranks / hardware.flops,
            "memory": (number * shape.num_parameters + cache) / ranks / hardware.memory_rate,
            "network": exchanged / hardware.link_rate,
        },
    )


def _scoring(shape: ModelShape, work: Work, hardware: Hardware, step: StepName, size: int, length: int) -> Bound:
    """One batch: float32 weights are read and cast, and the bf16 ones read."""
    traffic = shape.num_parameters * (4 + 2 * 2 if work.machine.is_bf16 else 4)
    seconds = {
        "compute": 2 * shape.num_parameters * size * length / hardware.flops,
        "memory": traffic / hardware.memory_rate,
        "network": 0.0,
    }
    return Bound(step, f"{size} sequences of {length} tokens", seconds)


def _training(shape: ModelShape, work: Work, hardware: Hardware) -> Bound:
    """One micro-batch of a rank, its share of the update included."""
    training, ranks = work.settings.training, work.settings.hardware.world_size
    tokens = training.micro_batch_size * work.lengths.pair
    again = training.gradient_checkpointing
    num_micro = max(training.global_batch_size // (training.micro_batch_size * ranks), 1)
    traffic = shape.num_parameters * (3 if again else 2) * (8 if work.machine.is_bf16 else 4)
    rate = hardware.network_rate if work.settings.hardware.nodes > 1 else hardware.link_rate
    return Bound(
        "train-epoch",
        f"{training.micro_batch_size} pairs of {work.lengths.pair} tokens a rank",
        {
            "compute": (8 if again else 6) * shape.num_parameters * tokens / hardware.flops,
            "memory": traffic / hardware.memory_rate,
            "network": _exchanged(shape, work, num_micro) * (ranks - 1) / ranks / rate,
        },
    )


def _exchanged(shape: ModelShape, work: Work, num_micro: int) -> float:
    """Bytes that a rank receives for a micro-batch."""
    stage, again = zero_stage(work), work.settings.training.gradient_checkpointing
    if stage is None or work.settings.hardware.world_size == 1:
        return 0.0
    number = 2 if work.machine.is_bf16 else 4
    if stage == 3:
        return number * shape.num_parameters * ((3 if again else 2) + 1)
    if stage == 2:
        return number * shape.num_parameters + 4 * shape.num_parameters / num_micro
    return 2 * number * shape.num_parameters / num_micro
