"""Memory of one rank of train-epoch, with plain torch or DeepSpeed's ZeRO (arXiv:1910.02054, section 3) on float32.

For each parameter a rank holds 4 bytes of weights, 4 of gradients and 4 k of optimizer state (AdamW k = 2, RMSProp
k = 1). With N ranks, ZeRO shards the state from stage 1 on, gradients from 2 on, weights at 3. Weights are float32, so
the master weights of ZeRO 1 and 2 are a second copy, of 4 / N bytes; at stage 3 they are the partition itself. With an
adapter, only its parameters have gradients and state. DeepSpeed reduces gradients in buckets of 5e8 elements and, at
stage 3, gathers at most 1e9 weights at a time, its defaults.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from spin_components.memory import activations
from spin_components.memory.activations import Batch
from spin_components.memory.estimate import (
    CUDA_BASE,
    CUDA_HOST_BASE,
    HOST_BASE,
    Estimate,
    Parts,
    largest_phase,
    whole_bytes,
)
from spin_components.memory.inference import forward_batch
from spin_components.memory.shape import ModelShape, frozen_bytes, num_trained
from spin_components.memory.work import Workload

STATE_NUMBERS = {"adamw": 2, "rmsprop": 1}
_BUCKET, _LIVE = 5 * 10**8, 10**9
_DEEPSPEED_BASE, _SAVING_BASE, _PEFT_BASE = 0.15 * 2**30, 0.07 * 2**30, 0.06 * 2**30
_SAVED_AT_ONCE, _FILE_AT_ONCE = 2**29, 2**31
"""Bytes that a rank holds of optimizer state and of weights while it writes them: `training.parts`,
`model.weight_files`."""
HEAP_HOLES = 0.45
"""Heap fragmentation on a CPU, as a share of a micro-batch's activations without checkpointing: long-lived gradients
and optimizer state are allocated between short-lived tensors, with and without checkpointing. Measured by
tests/benchmarks/memory.py with glibc 2.36 (0.41 to 0.52); bounded by the size of the long-lived tensors."""
LORA_HOLES = 1.0
"""Heap fragmentation with an adapter, as a share of activations and logits: the small saved outputs of A are allocated
between large short-lived tensors (0.5 to 1.2). So training an adapter on a CPU does not need less memory."""


def estimate_training(shape: ModelShape, work: Workload) -> Estimate:
    """Estimate one rank of train-epoch: the largest of loading, backward pass, update and saving."""
    stage = zero_stage(work)
    is_deepspeed = stage is not None
    held = _held(shape, work, stage)
    passing = _passing(shape, work, is_cast=stage != 3)
    updating = _updating(shape, work, held)
    in_parts = stage == 3  # see training.deepspeed_backend
    loading = {"weights": _weights(shape, work) // (work.settings.hardware.world_size if in_parts else 1)}
    saving, merging = _saving(shape, work), _merging(shape, work)
    processes, offloaded = work.settings.hardware.ranks, _offloaded(shape, work)
    base = {"libraries": (CUDA_HOST_BASE if work.on_gpu else HOST_BASE) + _DEEPSPEED_BASE * is_deepspeed}
    base["libraries"] += _PEFT_BASE * work.settings.lora.is_on
    device: Parts = {}
    nothing: Parts = {}
    phases: list[tuple[Parts, Parts]]
    if work.on_gpu:
        device = largest_phase({"CUDA": CUDA_BASE, **phase} for phase in (loading, {**held, **passing}, updating))
        via_host = {} if in_parts else loading  # weights are loaded into host memory before they go to a GPU
        phases = [(via_host, nothing), ({**offloaded, **saving}, merging)]
    else:
        held |= offloaded
        phases = [(loading, nothing), ({**held, **passing}, nothing), (updating, nothing)]
        # weights to merge an adapter into are read again; all else fits into memory that the passes have freed
        kept = {**held, **passing} if work.settings.lora.is_on else _without_gradients(held)
        phases.append(({**kept, **saving}, merging))
    each, first = max(phases, key=lambda phase: processes * sum(phase[0].values()) + sum(phase[1].values()))
    return Estimate("train-epoch", device, whole_bytes({**base, **each}), processes, whole_bytes(first))


def zero_stage(work: Workload) -> int | None:
    """DeepSpeed's ZeRO stage, 2 for an unresolved `auto` (see `staging`); None for plain torch."""
    training, hardware = work.settings.training, work.settings.hardware
    if training.backend == "deepspeed" or (training.backend == "auto" and hardware.world_size > 1):
        return 2 if training.zero_stage == "auto" else training.zero_stage
    return None


def training_batches(work: Workload) -> Batch:
    """The tokens saved for the backward pass of a micro-batch: those of its forward pass."""
    batch, lengths = forward_batch(work), work.lengths
    if not work.is_packed:
        return batch
    repeated = lengths.num_generated * (lengths.prompt + lengths.generated)
    return replace(batch, repeated=ceil(work.pairs_at_once * repeated))


def _held(shape: ModelShape, work: Workload, stage: int | None) -> Parts:
    """Weights, gradients and optimizer state of a rank, without offloaded ones."""
    ranks = work.settings.hardware.world_size
    trained = 4 * num_trained(shape, work.settings.lora)
    part = trained // ranks
    weights = _weights(shape, work)
    if stage is None or stage == 0:
        parts = {"weights": weights, "gradients": trained, "optimizer state": _numbers(work) * trained}
    elif work.settings.training.offload_optimizer:
        parts = {"weights": weights // ranks if stage == 3 else weights}
    elif stage == 3:
        parts = {"weights": weights // ranks, "gradients": part, "optimizer state": _numbers(work) * part}
    else:
        gradients = trained + part if stage == 1 else part
        parts = {"weights": weights, "gradients": gradients, "master weights": part}
        parts["optimizer state"] = _numbers(work) * part
    if stage is not None:
        number = 2 if work.machine.is_bf16 and stage == 3 else 4
        parts["DeepSpeed's buckets"] = number * (_BUCKET if work.on_gpu else min(_BUCKET, trained // 4))
        if stage == 3:
            parts["gathered weights"] = number * min(_LIVE, shape.num_parameters)
    return parts


def _offloaded(shape: ModelShape, work: Workload) -> Parts:
    """Tensors that a rank offloads to host memory: its shard of master weights, gradients and optimizer state."""
    if not work.settings.training.offload_optimizer:
        return {}
    part = 4 * num_trained(shape, work.settings.lora) // work.settings.hardware.world_size
    return {"master weights": part, "gradients": part, "optimizer state": _numbers(work) * part}


def _weights(shape: ModelShape, work: Workload) -> int:
    """Bytes of the weights of the whole model, including an adapter."""
    lora = work.settings.lora
    return frozen_bytes(shape, lora) + (4 * num_trained(shape, lora) if lora.is_on else 0)


def _numbers(work: Workload) -> int:
    return STATE_NUMBERS[work.settings.training.optimizer]


def _without_gradients(held: Parts) -> Parts:
    return {name: size for name, size in held.items() if name != "gradients"}


def _passing(shape: ModelShape, work: Workload, *, is_cast: bool) -> Parts:
    """Memory of forward and backward pass of one micro-batch, besides weights, gradients and state."""
    is_bf16 = work.machine.is_bf16
    kept, computed = training_batches(work), forward_batch(work)
    block = activations.block_bytes(shape, kept, is_bf16=is_bf16)
    if work.settings.training.gradient_checkpointing:
        saved = shape.num_layers * activations.boundary_bytes(shape, kept) + block
    else:
        saved = shape.num_layers * block
    working = activations.working_bytes(shape, computed, is_bf16=is_bf16, backward=True)
    positions = work.logits_at_once(kept.positions, shape.vocabulary)
    tied = 2 * 4 * shape.vocabulary * shape.hidden if shape.is_tied else 0  # two gradients of one matrix, then summed
    logits = activations.logit_bytes(shape, positions, is_bf16=is_bf16, backward=True)
    if work.settings.lora.is_on:
        holes = int(LORA_HOLES * (saved + working + logits))
    else:
        holes = min(int(HEAP_HOLES * shape.num_layers * block), (1 + _numbers(work)) * 4 * shape.num_parameters)
    parts = {
        "holes of the heap": 0 if work.on_gpu else holes,
        "gradients in flight": 0 if work.settings.lora.is_on else tied,
        "activations": saved + working,
        "logits": logits,
    }
    is_cast = is_cast and not work.settings.lora.is_quantized
    return {**parts, "bf16 copies of weights": 2 * shape.num_cast} if is_bf16 and is_cast else parts


def _updating(shape: ModelShape, work: Workload, held: Parts) -> Parts:
    """Memory of the update: on a GPU torch's optimizers use one temporary of the size of all trained parameters."""
    more = held.get("optimizer state", 0) // _numbers(work) if work.on_gpu else 0
    return {**held, "update": more}


def _saving(shape: ModelShape, work: Workload) -> Parts:
    """Memory of a rank's part of a save: a file of its optimizer state, and of weights gathered from GPUs or ranks."""
    lora = work.settings.lora
    part = num_trained(shape, lora) // work.settings.hardware.world_size
    parts = {
        "imports for saving": int(_SAVING_BASE),
        "state being saved": min(_SAVED_AT_ONCE, 4 * _numbers(work) * part),
    }
    if not lora.is_on and (work.on_gpu or zero_stage(work) == 3):
        largest = max(_FILE_AT_ONCE, 4 * shape.vocabulary * shape.hidden)
        parts["weights being saved"] = min(largest, 4 * shape.num_parameters)
    return parts


def _merging(shape: ModelShape, work: Workload) -> Parts:
    """Memory of the first rank to merge an adapter: weights that are read again."""
    lora = work.settings.lora
    return {"weights being merged": 4 * shape.num_parameters} if lora.is_on and lora.export == "merged" else {}
