"""A device to measure on, and models, pairs and training of given sizes with random contents."""

from __future__ import annotations

import importlib.util
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spin_components.algorithm.batching import micro_batches
from spin_components.algorithm.loss import Objective
from spin_components.algorithm.packing import PACKED, Kernel, attend_by_answer
from spin_components.data.pair_counts import PairCounts
from spin_components.data.shards import Pair
from spin_components.model.compute import Compute
from spin_components.settings.settings import Settings
from support.attention import flex_reference, varlen_reference

EOS = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """A check or a figure.

    Attributes:
        part: that it belongs to.
        what: is checked or measured.
        value: as printed.
        is_right: None for a figure.
    """

    part: str
    what: str
    value: str
    is_right: bool | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the measured model and pairs."""

    matrix: int
    layers: int
    hidden: int
    inner: int
    heads: int
    keys: int
    vocabulary: int
    prompts: tuple[int, int]
    answers: tuple[int, int]
    micro_batch: int
    global_batch: int
    num_prompts: int
    new_tokens: int


SHAPES = {
    # 1.34 billion parameters, with the proportions of Llama
    "full": Shape(8192, 24, 2048, 5632, 16, 8, 32000, (64, 256), (64, 512), 8, 16, 256, 256),
    "tiny": Shape(128, 2, 32, 64, 4, 2, 320, (4, 8), (4, 8), 2, 4, 4, 8),
}


@dataclass(frozen=True, slots=True)
class Bench:
    """What a part runs with."""

    device: torch.device
    shape: Shape
    folder: Path

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, call: Callable[[], object], rounds: int = 3) -> float:
        """Median time of a call in seconds, after one that does not count."""
        seconds = []
        for _ in range(1 + rounds):
            self.synchronize()
            started = time.perf_counter()
            call()
            self.synchronize()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds[1:])

    def peak_gib(self) -> float:
        """Peak of the device's memory since it was last asked for, in GiB; 0 on a CPU."""
        if self.device.type != "cuda":
            return 0.0
        peak = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return peak


def llama(shape: Shape, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Any:
    """A Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.keys,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=EOS,
    )
    torch.manual_seed(0)
    with device or torch.device("cpu"):
        return LlamaForCausalLM(config).to(dtype)


def small(shape: Shape) -> Shape:
    """Sizes for checks against float64 on the CPU."""
    if shape.hidden <= 256:
        return shape
    wide = replace(shape, layers=4, hidden=256, inner=512, heads=8, keys=4, vocabulary=2048)
    return replace(wide, prompts=(8, 48), answers=(8, 64))


def pairs_of(shape: Shape, num: int) -> list[Pair]:
    """Pairs of random tokens with lengths from the shape's ranges."""
    generator = random.Random(0)

    def ids(limits: tuple[int, int]) -> list[int]:
        return [generator.randrange(3, shape.vocabulary) for _ in range(generator.randint(*limits))]

    return [Pair(i, ids(shape.prompts), ids(shape.answers), ids(shape.answers), "length") for i in range(num)]


def settings_of(folder: Path, shape: Shape, **training: Any) -> Settings:
    """Settings of training on the measured pairs."""
    sizes = {"global_batch_size": shape.global_batch, "micro_batch_size": shape.micro_batch}
    sections = {"model": {"base": str(folder)}, "data": {"train": "-"}, "training": sizes | training}
    return Settings.model_validate(sections)


def kernels(device: torch.device) -> dict[str, Kernel]:
    """The kernels of packed attention by name; on a CPU, plain torch computes what those of GPUs call."""
    from spin_components.algorithm.attention.flex import FlexKernel
    from spin_components.algorithm.attention.kernels import FLASH, FLEX, VARLEN
    from spin_components.algorithm.attention.varlen import VarlenKernel, flash_attn_varlen, torch_varlen

    if device.type == "cpu":
        found: dict[str, Kernel] = {VARLEN: VarlenKernel(varlen_reference), FLEX: FlexKernel(flex_reference)}
    else:
        found = {VARLEN: VarlenKernel(torch_varlen()), FLEX: FlexKernel()}
        if importlib.util.find_spec("flash_attn"):
            found[FLASH] = VarlenKernel(flash_attn_varlen(), has_softcap=True)
    return {**found, PACKED: attend_by_answer}


def set_layout(model: Any, layout: str, compute: Compute) -> str:
    """Switch a model to padded batches, or to packed ones with the product's choice of a kernel or a named one.

    Args:
        model: in either layout.
        layout: `aligned`, `packed`, or a name of `kernels`.
        compute: device and precision.

    Returns: why it cannot be packed, or an empty string.
    """
    from spin_components.algorithm.head import answer_head
    from spin_components.model.batch_layout import enable_packed_attention, register_kernel

    answer_head(model)
    if layout == "packed":
        return enable_packed_attention(model, compute)
    if layout != "aligned":
        register_kernel(layout, kernels(compute.device)[layout])
        model.set_attn_implementation(layout)
    return ""


@dataclass
class Trainer:
    """A model in training on fixed pairs, which are scored under it first."""

    bench: Bench
    model: Any
    settings: Settings
    compute: Compute
    pairs: list[Pair]

    def __post_init__(self) -> None:
        from spin_components.record.pairs import ScoredPairs
        from spin_components.training.torch_backend import TorchBackend

        scores = self.score()
        self.batch = tuple(range(len(self.pairs)))
        self.data = ScoredPairs(self.pairs, scores, [self.batch], PairCounts())
        if self.settings.training.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.backend = TorchBackend(self.model.train(), self.settings.training, self.compute)
        self.num_steps = 0

    def score(self) -> Any:
        """Score the pairs under the model, as ref-logprob does."""
        from spin_components.ref_logprob.step import score_pairs

        batches = [tuple(range(len(self.pairs)))]
        return score_pairs(self.model.eval(), self.pairs, self.compute, batches, self.settings.training)

    def step(self) -> float:
        """Make one update on all pairs; returns the loss before it."""
        from spin_components.training.train_step import train_single_step

        training = self.settings.training
        micro = micro_batches(
            self.batch,
            [pair.num_tokens for pair in self.pairs],
            micro_batch_size=training.micro_batch_size,
            rank=0,
            ranks=1,
            num=training.global_batch_size // training.micro_batch_size,
        )
        result = train_single_step(
            self.backend,
            self.data,
            micro,
            batch=self.batch,
            objective=Objective(0.1),
            lr=1e-4,
            is_step_zero=self.num_steps == 0,
            where=f"step {self.num_steps}",
        )
        self.num_steps += 1
        return result.metrics["loss"]
