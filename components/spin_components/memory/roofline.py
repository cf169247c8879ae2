"""Roofline bounds of each step on given hardware: arithmetic, memory traffic or network.

In the roofline model (Williams, Waterman and Patterson, 2009) a step takes at least the longest of the times that each
of these needs alone. With P active parameters, training computes 6 P operations a token and a forward pass 2 P (Kaplan
et al., arXiv:2001.08361, section 2.1); with gradient checkpointing, training computes 8 P. Decoding reads all weights
and the KV cache once for each token position of its batch. Under ZeRO-3 a rank receives the weights twice (three times
with gradient checkpointing) and sends gradients once in every micro-batch; under ZeRO 0 to 2 it sends and receives
gradients once a micro-batch (arXiv:1910.02054, section 7), and stages 1 and 2 gather the weights after the update.
Processes that divide a model to score with it receive its weights once in every forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from spin_components.memory.estimate import StepName
from spin_components.memory.inference import scored_bytes
from spin_components.memory.processes import is_sharded
from spin_components.memory.shape import ModelShape
from spin_components.memory.training import zero_stage
from spin_components.memory.work import Workload


@dataclass(frozen=True, slots=True)
class Hardware:
    """A GPU and its interconnect, by the vendor's data sheet.

    Attributes:
        name: of the GPU.
        gpu_bytes: size of its memory.
        flops: dense bf16 operations a second.
        memory_rate: memory bandwidth, bytes a second.
        link_rate: bandwidth between GPUs of a node, bytes a second in one direction.
        network_rate: bandwidth between nodes for each GPU, bytes a second in one direction.
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
"""Hardware by name; network rates of 200 and 400 Gbit/s for each GPU."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Lower bounds of the time of one unit of a step's work.

    Attributes:
        step: name of the step.
        unit: description of the unit of work.
        seconds: bound by resource: `compute`, `memory` and `network`.
    """

    step: StepName
    unit: str
    seconds: dict[str, float]

    @property
    def by(self) -> str:
        """The resource with the largest bound."""
        return max(self.seconds, key=lambda name: self.seconds[name])


def bounds(shape: ModelShape, work: Workload, hardware: Hardware) -> list[Bound]:
    """Bounds of each step on the given hardware."""
    return [
        _generating(shape, work, hardware),
        _scoring(shape, work, hardware, "ref-logprob", work.pairs_at_once, work.lengths.pair),
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


def _generating(shape: ModelShape, work: Workload, hardware: Hardware) -> Bound:
    """Bound of one token of every sequence of a full batch, with KV caches of half the maximum length."""
    generation, ranks = work.settings.generation, work.settings.generation.tensor_parallel
    number, size = 2 if work.machine.is_bf16 else 4, generation.batch_size
    cache = size * work.settings.data.max_length // 2 * 2 * number * shape.num_layers * shape.keys
    exchanged = 2 * shape.num_layers * shape.hidden * number * size * 2 * (ranks - 1) / ranks
    return Bound(
        "generate",
        f"a token of each of {size} sequences",
        {
            "compute": 2 * shape.num_active * size / ranks / hardware.flops,
            "memory": (number * shape.num_parameters + cache) / ranks / hardware.memory_rate,
            "network": exchanged / hardware.link_rate,
        },
    )


def _scoring(shape: ModelShape, work: Workload, hardware: Hardware, step: StepName, size: float, length: int) -> Bound:
    """Bound of one batch of one process, which reads the weights once."""
    seconds = {
        "compute": 2 * shape.num_active * size * length / hardware.flops,
        "memory": scored_bytes(shape, work) / hardware.memory_rate,
        "network": gathered_bytes(shape, work, step) / hardware.link_rate,
    }
    return Bound(step, f"{round(size, 2):g} sequences of {length} tokens", seconds)


def _training(shape: ModelShape, work: Workload, hardware: Hardware) -> Bound:
    """Bound of one micro-batch of a rank, including its share of the update."""
    training, ranks = work.settings.training, work.settings.hardware.world_size
    size = work.pairs_at_once
    tokens = size * work.lengths.pair
    again = training.gradient_checkpointing
    num_micro = max(int(training.global_batch_size / (size * ranks)), 1)
    traffic = shape.num_parameters * (3 if again else 2) * (8 if work.machine.is_bf16 else 4)
    rate = hardware.network_rate if work.settings.hardware.nodes > 1 else hardware.link_rate
    return Bound(
        "train-epoch",
        f"{round(size, 2):g} pairs of {work.lengths.pair} tokens a rank",
        {
            "compute": (8 if again else 6) * shape.num_active * tokens / hardware.flops,
            "memory": traffic / hardware.memory_rate,
            "network": exchanged_bytes(shape, work, num_micro) * (ranks - 1) / ranks / rate,
        },
    )


def gathered_bytes(shape: ModelShape, work: Workload, step: StepName) -> float:
    """Bytes that a process receives for a forward pass to score or validate; 0 where each has all weights."""
    ranks = work.settings.num_gpus(step)
    return scored_bytes(shape, work) * (ranks - 1) / ranks if is_sharded(shape, work, step, ranks) else 0.0


def exchanged_bytes(shape: ModelShape, work: Workload, num_micro: int) -> float:
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
