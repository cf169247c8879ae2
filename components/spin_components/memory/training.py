"""Memory of one rank of train-epoch: plain torch, or DeepSpeed's ZeRO (arXiv:1910.02054, section 3) over float32.

Per parameter a rank holds 4 bytes of weights, 4 of gradients and 4 k of optimizer state (AdamW k = 2, RMSProp k = 1);
ZeRO divides the state by N from stage 1 on, gradients from 2 on, weights at 3. Weights are float32 already, so the
master copy of ZeRO 1 and 2 is a second one, of 4 / N; at stage 3 it is the partition itself. Where an adapter is
trained, only its parameters have gradients and state. DeepSpeed gathers
gradients in buckets of 5e8 numbers and, at stage 3, weights of 1e9 at most: its defaults, which are ours.
"""

from __future__ import annotations

from spin_components.memory import activations
from spin_components.memory.activations import Batch
from spin_components.memory.adapter import frozen_bytes, num_trained
from spin_components.memory.estimate import CUDA_BASE, CUDA_HOST_BASE, HOST_BASE, Estimate, Parts, largest, whole
from spin_components.memory.inference import forward_batch
from spin_components.memory.shape import ModelShape
from spin_components.memory.work import Work

STATE_NUMBERS = {"adamw": 2, "rmsprop": 1}
_BUCKET, _LIVE = 5 * 10**8, 10**9
_DEEPSPEED_BASE, _SAVING_BASE, _PEFT_BASE = 0.15 * 2**30, 0.07 * 2**30, 0.06 * 2**30
_SAVED_AT_ONCE = 2**29
HEAP_HOLES = 0.45
"""On a CPU, what the C library's heap loses over what is in use, as a share of a micro-batch's activations without
checkpointing: gradients and optimizer state come to lie between blocks that come and go, with checkpointing as without.
Measured by tests/benchmarks/memory.py with glibc 2.36 (0.41 to 0.52); never taken for more than what lies between."""
LORA_HOLES = 1.0
"""The same where an adapter is trained, as a share of activations and logits: what a layer's A gives is small and
stays, and lies between large blocks that come and go (0.5 to 1.2). On a CPU an adapter takes no less memory for it."""


def training(shape: ModelShape, work: Work) -> Estimate:
    """One rank at its peak: loading, in the backward pass, in the update, or while it saves."""
    stage = zero_stage(work)
    is_deepspeed = stage is not None
    held = _held(shape, work, stage)
    passing = _passing(shape, work, is_cast=stage != 3)
    updating = _updating(shape, work, held)
    in_parts = stage == 3 and not work.is_packed  # see train_epoch.sharded
    loading = {"weights": _weights(shape, work) // (work.settings.hardware.world_size if in_parts else 1)}
    saving = _saving(shape, work)
    processes, offloaded = work.settings.hardware.ranks, _offloaded(shape, work)
    base = {"libraries": (CUDA_HOST_BASE if work.on_gpu else HOST_BASE) + _DEEPSPEED_BASE * is_deepspeed}
    base["libraries"] += _PEFT_BASE * work.settings.lora.is_on
    device: Parts = {}
    nothing: Parts = {}
    phases: list[tuple[Parts, Parts]]
    if work.on_gpu:
        device = largest({"CUDA": CUDA_BASE, **phase} for phase in (loading, {**held, **passing}, updating))
        through = {} if in_parts else loading  # what goes to a GPU by way of the machine's memory
        phases = [(through, nothing), (offloaded, saving)]
    else:
        held |= offloaded
        phases = [(loading, nothing), ({**held, **passing}, nothing), (updating, nothing)]
        # what is merged into is read from files; all else finds room in what the heap keeps of the passes
        phases.append(({**held, **passing} if work.settings.lora.is_on else _without_gradients(held), saving))
    each, first = max(phases, key=lambda phase: processes * sum(phase[0].values()) + sum(phase[1].values()))
    return Estimate("train-epoch", device, whole({**base, **each}), processes, whole(first))


def zero_stage(work: Work) -> int | None:
    """DeepSpeed's stage, 2 as long as `auto` is not decided (see `staging`); None for plain torch."""
    training, hardware = work.settings.training, work.settings.hardware
    if training.backend == "deepspeed" or (training.backend == "auto" and hardware.world_size > 1):
        return 2 if training.zero_stage == "auto" else training.zero_stage
    return None


def training_batches(work: Work) -> Batch:
    """What is kept for the backward pass of a micro-batch: padded, both of its forward passes."""
    size, lengths = work.settings.training.micro_batch_size, work.lengths
    positions = size * (lengths.actual + lengths.generated)
    if work.is_packed:
        return Batch(size * lengths.pair, positions, repeated=size * (lengths.prompt + lengths.generated))
    sequences = (lengths.prompt + lengths.actual, lengths.prompt + lengths.generated)
    squares = 0 if work.on_gpu else size * sum(length**2 for length in sequences)
    return Batch(size * sum(sequences), positions, squares=squares)


def _held(shape: ModelShape, work: Work, stage: int | None) -> Parts:
    """Weights, gradients and optimizer state, but for what is offloaded."""
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


def _offloaded(shape: ModelShape, work: Work) -> Parts:
    """What a rank keeps in the machine's memory instead: float32 weights of its part, their gradients, the state."""
    if not work.settings.training.offload_optimizer:
        return {}
    part = 4 * num_trained(shape, work.settings.lora) // work.settings.hardware.world_size
    return {"master weights": part, "gradients": part, "optimizer state": _numbers(work) * part}


def _weights(shape: ModelShape, work: Work) -> int:
    """Of the whole model, and of the adapter upon it."""
    lora = work.settings.lora
    return frozen_bytes(shape, lora) + (4 * num_trained(shape, lora) if lora.is_on else 0)


def _numbers(work: Work) -> int:
    return STATE_NUMBERS[work.settings.training.optimizer]


def _without_gradients(held: Parts) -> Parts:
    return {name: size for name, size in held.items() if name != "gradients"}


def _passing(shape: ModelShape, work: Work, *, is_cast: bool) -> Parts:
    """What forward and backward of one micro-batch take beside what is held."""
    is_bf16 = work.machine.is_bf16
    kept, computed = training_batches(work), forward_batch(work)
    block = activations.block_bytes(shape, kept, is_bf16=is_bf16)
    if work.settings.training.gradient_checkpointing:
        saved = shape.num_layers * activations.boundary_bytes(shape, kept) + block
    else:
        saved = shape.num_layers * block
    working = activations.working_bytes(shape, computed, is_bf16=is_bf16, backward=True)
    positions = work.logits_at_once(kept.positions, shape.vocabulary)
    tied = 2 * 4 * shape.vocabulary * shape.hidden if shape.is_tied else 0  # two gradients of one matrix, to be added
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


def _updating(shape: ModelShape, work: Work, held: Parts) -> Parts:
    """The update: on a GPU torch's optimizers work on all tensors at once, with one more of their size."""
    more = held.get("optimizer state", 0) // _numbers(work) if work.on_gpu else 0
    return {**held, "update": more}


def _saving(shape: ModelShape, work: Work) -> Parts:
    """Files being written: a part of the optimizer's state at a time, and weights gathered from elsewhere, or
    read again to have an adapter merged into them."""
    lora = work.settings.lora
    parts = {
        "imports for saving": int(_SAVING_BASE),
        "state being saved": min(_SAVED_AT_ONCE, 4 * _numbers(work) * num_trained(shape, lora)),
    }
    if lora.is_on:
        return parts if lora.export == "adapter" else {**parts, "weights being merged": 4 * shape.num_parameters}
    if work.on_gpu or zero_stage(work) == 3:
        parts["weights being saved"] = 4 * shape.num_parameters
    return parts
