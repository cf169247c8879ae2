"""Comparison of estimates with the available memory, and the settings to change where it does not suffice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spin_components.errors import ConfigError
from spin_components.memory.estimate import GIB, TRAINING, Estimate
from spin_components.memory.training import zero_stage
from spin_components.memory.work import Workload

REFUSED, DOUBTED = 1.15, 0.95
"""Shares of the available memory above which a step is refused, or a warning is given; estimates are within 20 % of
measurements."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """A step that needs more memory than available, or almost all of it.

    Attributes:
        is_certain: whether the step cannot fit, given the estimate's accuracy.
        message: the step, its estimate by largest parts, and the available memory.
        remedy: settings to change, the most effective first.
    """

    is_certain: bool
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy[:1].upper()}{self.remedy[1:]}"


def shortages(estimates: Sequence[Estimate], work: Workload) -> list[Shortage]:
    """Shortages of GPU memory, and of the host memory that a step's processes share, where their size is known."""
    checked = []
    for estimate in estimates:
        if estimate.device and (limit := work.machine.device_bytes):
            checked.append(_shortage(estimate, estimate.device_bytes, limit, "of one GPU", estimate.device, work))
        if limit := work.machine.host_bytes.get(estimate.step, 0):
            kind = f"of memory for {estimate.processes} processes" if estimate.processes > 1 else "of memory"
            checked.append(_shortage(estimate, estimate.host_bytes, limit, kind, estimate.host_parts, work))
    return [shortage for shortage in checked if shortage]


def refuse(shortages: Sequence[Shortage]) -> None:
    """Raise an error for the first certain shortage.

    Raises:
        ConfigError: a step cannot fit.
    """
    for shortage in shortages:
        if shortage.is_certain:
            raise ConfigError(f"{shortage}. To run anyway: hardware.memory_check = 'warn'")


def _shortage(
    estimate: Estimate, needed: int, limit: int, kind: str, parts: Mapping[str, int], work: Workload
) -> Shortage | None:
    free = work.machine.free_bytes if parts is not estimate.device else 0
    is_short = bool(free) and needed > free
    if needed <= DOUBTED * limit and not is_short:
        return None
    largest = sorted(parts, key=lambda name: -parts[name])[:3]
    shown = ", ".join(f"{name} {in_gib(parts[name])}" for name in largest)
    is_certain = needed > REFUSED * limit
    verb = "needs" if is_certain else "may need"
    available = f"there are {in_gib(limit)}" + (f", {in_gib(free)} of them free now" if is_short else "")
    message = f"{estimate.step} {verb} about {in_gib(needed)} {kind}, {available} ({shown})"
    return Shortage(is_certain, message, _remedy(estimate, parts, needed - min(limit, free or limit), work))


def _remedy(estimate: Estimate, parts: Mapping[str, int], lacking: int, work: Workload) -> str:
    """Settings that reduce the large parts, the largest part first, without duplicates."""
    changes: list[str] = []
    for name in sorted(parts, key=lambda name: -parts[name]):
        if parts[name] > lacking / 10:
            changes += [change for change in _changes(name, estimate, work) if change not in changes]
    on_gpu = parts is estimate.device
    return "try " + ", or ".join([*changes[:4], "a larger GPU" if on_gpu else "more memory"])


def _changes(part: str, estimate: Estimate, work: Workload) -> list[str]:
    training, step = work.settings.training, estimate.step
    stage = zero_stage(work)
    match part:
        case "activations" | "logits" if step in TRAINING:
            changes = [] if training.gradient_checkpointing else ["training.gradient_checkpointing = true"]
            if training.micro_batch_tokens > work.lengths.pair:
                changes.append(f"training.micro_batch_tokens below {training.micro_batch_tokens}")
            elif training.micro_batch_size > 1 and not training.micro_batch_tokens:
                changes.append(f"training.micro_batch_size below {training.micro_batch_size}")
            return [*changes, f"data.max_length below {work.settings.data.max_length}"]
        case "activations" | "logits" if step == "generate":
            return _generation_changes(work)
        case "activations" | "logits":
            key, size = "training.micro_batch_size", training.micro_batch_size
            if step == "validate":
                key, size = "validation.batch_size", work.settings.validation.batch_size
            lower = [f"{key} below {size}"] if size > 1 else []
            return [*lower, f"data.max_length below {work.settings.data.max_length}"]
        case "weights being merged":
            return ["lora.export = 'adapter'"]
        case "optimizer state" | "gradients" | "master weights" | "update":
            return _sharding_changes(work, stage)
        case "weights" if step in TRAINING and stage != 3:
            return _sharding_changes(work, stage)
        case "weights" if work.on_gpu and step in ("ref-logprob", "validate"):
            return _scoring_changes(estimate, work)
        case "weights" if step == "generate" and work.on_gpu:
            return [f"generation.tensor_parallel above {work.settings.generation.tensor_parallel}"]
        case "KV cache":
            return _generation_changes(work)
        case "bf16 copies of weights" if not work.on_gpu:
            return ["training.precision = 'float32'"]
    return []


def _sharding_changes(work: Workload, stage: int | None) -> list[str]:
    training = work.settings.training
    changes = []
    if not training.offload_optimizer and work.on_gpu:
        changes.append("training.offload_optimizer = true")
    if work.on_gpu:  # ranks on CPUs share one machine's memory, so that sharding does not reduce it
        changes.append("training.zero_stage = 3" if stage != 3 else "more hardware.ranks or hardware.nodes")
    if training.optimizer == "adamw":
        changes.append("training.optimizer = 'rmsprop'")
    return changes


def _scoring_changes(estimate: Estimate, work: Workload) -> list[str]:
    """What lets more GPUs of a pod divide the weights of a model that is scored."""
    settings = work.settings
    if settings.lora.is_quantized:
        return ["a smaller model: 4-bit weights are not divided among GPUs"]
    if settings.hardware.shard_scoring == "off":
        return ["hardware.shard_scoring = 'auto', which divides the weights among the GPUs"]
    if (
        estimate.step == "ref-logprob"
        and work.machine.is_pod
        and settings.num_gpus(estimate.step) < settings.hardware.ranks
    ):
        return [
            f"hardware.shard_scoring = 'on', with which a ref-logprob pod has {settings.hardware.ranks} GPUs to divide "
            "the weights among"
        ]
    return [f"hardware.ranks above {settings.hardware.ranks}, where a machine has as many GPUs to divide the weights"]


def _generation_changes(work: Workload) -> list[str]:
    generation = work.settings.generation
    if generation.engine == "vllm" and not work.on_gpu:
        return [f"generation.kv_cache_gib below {generation.kv_cache_gib:g}"]
    return [f"generation.batch_size below {generation.batch_size}"]


def in_gib(num_bytes: int) -> str:
    """Format a number of bytes as GiB, or as MiB below 0.1 GiB."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB // 10 else f"{num_bytes / 2**20:.0f} MiB"
