"""Memory of the steps without a backward pass: generate, ref-logprob and validate."""

from __future__ import annotations

from math import ceil

from spin_components.memory.activations import Batch, logit_bytes, working_bytes
from spin_components.memory.estimate import (
    CUDA_BASE,
    CUDA_HOST_BASE,
    HOST_BASE,
    Estimate,
    Parts,
    StepName,
    largest_phase,
)
from spin_components.memory.shape import ModelShape, frozen_bytes
from spin_components.memory.work import Workload

VLLM_HOST_BASE = 1.5 * 2**30
"""Host memory of vLLM's process and that of its engine, on a CPU."""


def estimate_scoring(shape: ModelShape, work: Workload, step: StepName, ranks: int = 1) -> Estimate:
    """Estimate ref-logprob or validate: frozen weights, and one forward pass.

    Args:
        shape: of the model.
        work: settings, machine and lengths.
        step: its name.
        ranks: processes that the weights are divided among; 1 for a process with all of them.
    """
    batch = validation_batch(work) if step == "validate" else forward_batch(work)
    passing = _passing(shape, work, batch)
    if ranks > 1:
        return _sharded(step, shape, work, passing, ranks)
    if work.settings.lora.is_quantized:
        held = frozen_bytes(shape, work.settings.lora)
        return _resident(step, work, {"weights": held, **passing}, loaded=held)
    copies = 2 * shape.vocabulary * shape.hidden if work.machine.is_bf16 and shape.is_tied else 0
    computing = {"weights": scored_bytes(shape, work), "bf16 copies of weights": copies, **passing}
    return _resident(step, work, computing, loaded=4 * shape.num_parameters)


def scored_bytes(shape: ModelShape, work: Workload) -> int:
    """Bytes of weights that are not trained: linear layers in the compute dtype, embeddings and experts in float32.

    An output layer that shares the embedding's weights is the embedding; see `model.frozen_weights`.
    """
    is_bf16 = work.machine.is_bf16
    return 4 * shape.num_parameters - (2 * shape.num_linear if is_bf16 else 0)


def _sharded(step: StepName, shape: ModelShape, work: Workload, passing: Parts, ranks: int) -> Estimate:
    """Estimate of one of several processes that divide the weights, and gather two blocks at a time.

    Embedding and output layer are gathered for a whole forward pass. Each weight is read whole.
    """
    whole, number = scored_bytes(shape, work), 2 if work.machine.is_bf16 else 4
    embedding = shape.vocabulary * shape.hidden
    outside = 4 * embedding + (0 if shape.is_tied else number * embedding)
    computing: Parts = {
        "weights": whole // ranks,
        "gathered weights": outside + 2 * max(whole - outside, 0) // shape.num_layers,
        "bf16 copies of weights": 2 * embedding if work.machine.is_bf16 and shape.is_tied else 0,
        **passing,
    }
    experts = shape.experts.num_routed(shape.hidden) // shape.experts.num_layers if shape.experts else 0
    loading = {"weights being read": 4 * max(embedding, experts)}
    if work.on_gpu:
        device = largest_phase([{"CUDA": CUDA_BASE, **computing}])
        return Estimate(step, device, largest_phase([{"libraries": CUDA_HOST_BASE, **loading}]), ranks)
    phases = [{"libraries": HOST_BASE, **computing}, {"libraries": HOST_BASE, "weights": whole // ranks, **loading}]
    return Estimate(step, {}, largest_phase(phases), ranks)


def forward_batch(work: Workload) -> Batch:
    """Largest forward pass over pairs, of a micro-batch; padded, all answers have rows of the longest length."""
    size, lengths = work.pairs_at_once, work.lengths
    positions = ceil(size * lengths.answers)
    if work.is_packed:
        return Batch(ceil(size * lengths.pair), positions)
    rows = work.num_answers * size
    squares = 0 if work.on_gpu else ceil(rows * lengths.longest**2)
    return Batch(ceil(rows * lengths.longest), positions, squares=squares)


def validation_batch(work: Workload) -> Batch:
    """Largest forward pass over human answers, of a batch."""
    size, lengths = work.settings.validation.batch_size, work.lengths
    length = lengths.prompt + lengths.actual
    if work.is_packed:
        return Batch(size * length, size * lengths.actual)
    return Batch(size * length, size * lengths.actual, squares=0 if work.on_gpu else size * length**2)


def weights(shape: ModelShape, work: Workload) -> Parts:
    """Float32 weights, and the bf16 copies that autocast caches until its context ends."""
    parts = {"weights": 4 * shape.num_parameters}
    return {**parts, "bf16 copies of weights": 2 * shape.num_cast} if work.machine.is_bf16 else parts


def _passing(shape: ModelShape, work: Workload, batch: Batch) -> Parts:
    """Memory of a forward pass besides the weights."""
    positions = work.logits_at_once(batch.positions, shape.vocabulary)
    is_bf16 = work.machine.is_bf16
    return {
        "activations": working_bytes(shape, batch, is_bf16=is_bf16, backward=False),
        "logits": logit_bytes(shape, positions, is_bf16=is_bf16, backward=False),
    }


def _resident(step: StepName, work: Workload, computing: Parts, *, loaded: int) -> Estimate:
    """Estimate of a single process with its model on a GPU, loaded through host memory, or on a CPU.

    Args:
        step: its name.
        work: settings and machine.
        computing: parts of the forward pass, weights included.
        loaded: bytes of the weights in host memory while they are loaded.
    """
    loading = {"weights": loaded}
    if not work.on_gpu:
        return Estimate(step, {}, largest_phase([{"libraries": HOST_BASE, **phase} for phase in (loading, computing)]))
    host = largest_phase([{"libraries": CUDA_HOST_BASE, **loading}])
    return Estimate(step, largest_phase([{"CUDA": CUDA_BASE, **computing}]), host)


def estimate_generation(shape: ModelShape, work: Workload) -> Estimate:
    """Estimate generate: with vLLM on a GPU or where the settings name it, else with `transformers`."""
    engine = work.settings.generation.engine
    if engine == "vllm" or (engine == "auto" and work.on_gpu):
        return _vllm(shape, work)
    size = work.settings.generation.batch_size
    prompt = min(work.settings.data.max_prompt_length, work.lengths.longest)
    length = min(prompt + work.settings.generation.max_new_tokens, work.settings.data.max_length)
    is_bf16 = work.machine.is_bf16
    batch = Batch(size * prompt, 0, squares=0 if work.on_gpu else size * prompt**2)
    # keys are float32 because rotary embeddings are; values have the compute dtype
    cache = size * length * shape.num_layers * shape.keys * ((4 + 2) if is_bf16 else (4 + 4))
    grown = size * length * (2 * shape.keys + 2 * shape.queries) * 4
    computing = {
        **weights(shape, work),
        "KV cache": cache,
        "activations": max(working_bytes(shape, batch, is_bf16=is_bf16, backward=False), grown),
        "logits": 4 * 4 * size * shape.vocabulary,
    }
    return _resident("generate", work, computing, loaded=4 * shape.num_parameters)


def _vllm(shape: ModelShape, work: Workload) -> Estimate:
    """Estimate for vLLM: weights in compute precision, sharded over GPUs, and a KV cache that fills its share of a GPU.

    If the GPU's memory is not known, the KV cache is the smallest one, for one sequence of full length.
    """
    settings, ranks = work.settings.generation, work.settings.generation.tensor_parallel
    number = 2 if work.machine.is_bf16 else 4
    loaded = number * shape.num_parameters // ranks
    if not work.on_gpu:
        cache = int(max(1, round(settings.kv_cache_gib)) * 2**30)
        parts = {"libraries": VLLM_HOST_BASE, "weights": loaded, "KV cache": cache}
        return Estimate("generate", {}, largest_phase([parts]))
    longest = work.settings.data.max_length
    one = 2 * number * shape.num_layers * shape.keys * longest // min(ranks, max(shape.keys, 1))
    # vLLM computes at most max_num_batched_tokens at a time: 8192, or one prompt of full length
    tokens = max(8192, longest)
    passing = working_bytes(shape, Batch(tokens, 0), is_bf16=number == 2, backward=False) // ranks
    needed = {"CUDA": int(CUDA_BASE), "weights": loaded, "activations": passing, "KV cache": one}
    if share := int(settings.gpu_memory_utilization * work.machine.device_bytes):
        needed["KV cache"] = max(one, share - sum(needed.values()) + one)
    host = {"libraries": CUDA_HOST_BASE, "weights being read": min(loaded, 5 * 2**30)}
    return Estimate("generate", largest_phase([needed]), largest_phase([host]), processes=ranks)
