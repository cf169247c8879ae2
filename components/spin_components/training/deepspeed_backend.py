"""DeepSpeed ZeRO 0 to 3 on any number of ranks, on GPUs and on CPUs.

The module's weights stay float32 and autocast does the mixed precision, as in the plain backend and in ref-logprob:
DeepSpeed's own bf16 mode would run the residual stream in bf16, and the policy would not start as its reference.

Saves need what each rank holds, in float32: of the optimizer's state under stages 1 and 2 the fragments of parameters
in its partition, under stage 3 its partition of every parameter; of weights the same under stage 3, else an even share
of each. See `training.parts` for the files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_local_optimizer_state, safe_set_local_optimizer_state
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional

from spin_components.errors import ConfigError
from spin_components.model.batch_layout import pack_where_it_fits
from spin_components.model.compute import Compute
from spin_components.model.loading import load_model
from spin_components.model.scoring import load_scored
from spin_components.settings.settings import Settings
from spin_components.settings.training import TrainingSettings
from spin_components.training.extensions import extensions_compiled
from spin_components.training.optimizer import STATE_KEYS, build_optimizer
from spin_components.training.parts import WEIGHT, Part, Parts, share_of

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


def engine_config(settings: TrainingSettings, compute: Compute) -> dict[str, Any]:
    """DeepSpeed's configuration; needs an initialised process group."""
    num_micro = settings.global_batch_size // (settings.micro_batch_size * dist.get_world_size())
    return {
        "train_batch_size": settings.global_batch_size,
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": num_micro,
        "gradient_clipping": settings.gradient_clip_val,
        "zero_optimization": {"stage": settings.zero_stage, **_offload(settings, compute)},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's own updates on the CPU too, so that losses stay the same
        "torch_autocast": {"enabled": compute.precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": 2**31,
    }


def _offload(settings: TrainingSettings, compute: Compute) -> dict[str, Any]:
    """Optimizer state in the machine's memory, pinned where a GPU copies from it."""
    if not settings.offload_optimizer:
        return {}
    return {"offload_optimizer": {"device": "cpu", "pin_memory": compute.device.type == "cuda"}}


class _TiedHead(nn.Linear):
    """An output layer whose weight is the embedding's too."""


def _keep_tied_float32(model: Any) -> None:
    """Have ZeRO-3 gather a weight that output layer and embedding share in float32, as the embedding reads it.

    Under autocast DeepSpeed gathers the weights of every `nn.Linear` in bf16, and looks for that very class. Embeddings
    rounded to bf16 would begin the residual stream of the policy, but not of its reference.
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(head) is nn.Linear and head.weight is embeddings.weight:
        head.__class__ = _TiedHead


class DeepSpeedBackend:
    """One rank of a DeepSpeed engine. See `Backend` for the methods."""

    needs_filling = True

    def __init__(self, model: Any, settings: TrainingSettings, compute: Compute) -> None:
        self.compute = compute
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self._settings = settings
        if settings.zero_stage == "auto":
            raise ConfigError("training.zero_stage = 'auto' was not resolved before ranks were started")
        self._stage: int = settings.zero_stage
        self._num_micro = settings.global_batch_size // (settings.micro_batch_size * self.ranks)
        self._pending = False
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._finite = {name: torch.ones((), dtype=torch.bool, device=compute.device) for name, _ in named}
        for name, parameter in named:
            parameter.register_hook(self._finite_hook(name))
        _keep_tied_float32(model)
        with extensions_compiled():
            self.model, *_ = deepspeed.initialize(
                model=model,
                optimizer=build_optimizer(settings, [parameter for _, parameter in named]),
                config=engine_config(settings, compute),
            )
        self._module = self.model.module
        self._named = dict(named)
        if self._stage == 3:
            pack_where_it_fits(self.model, settings, compute)

    def _finite_hook(self, name: str) -> Callable[[Tensor], None]:
        def check(gradient: Tensor) -> None:
            self._finite[name] &= torch.isfinite(gradient).all()

        return check

    @property
    def _base_optimizer(self) -> torch.optim.Optimizer:
        """Torch's optimizer: below ZeRO's wrapper, over flat partitions; without ZeRO the optimizer itself."""
        return getattr(self.model.optimizer, "optimizer", self.model.optimizer)  # type: ignore[no-any-return]

    def backward(self, loss: Tensor, *, is_last: bool = True) -> None:
        if self._pending:
            self.model.step()  # inside a global batch: counts the micro-batch, updates nothing
        if self._settings.micro_batch_tokens:  # global batches have different numbers of micro-batches
            self.model.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed divides by the number of micro-batches and averages over ranks; this loss is divided already
        self.model.backward(loss * (self._num_micro * self.ranks))
        self._pending = True

    def check_gradients(self) -> str | None:
        bad = torch.stack([~finite for finite in self._finite.values()]).float()
        dist.all_reduce(bad)
        names = [name for name, count in zip(self._finite, bad.tolist(), strict=True) if count]
        return names[0] if names else None

    def clip_and_step(self, lr: float) -> float:
        for group in self.model.optimizer.param_groups:
            group["lr"] = lr
        norm = None
        if self._stage == 0:  # DeepSpeed has reduced the gradients, and gives their norm only under ZeRO
            gradients = [parameter.grad for parameter in self._named.values() if parameter.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
        self.model.step()
        self._pending = False
        return float(self.model.get_global_grad_norm() if norm is None else norm)

    def reduce_sum(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.compute.device)
        dist.all_reduce(tensor)
        return tensor

    def agree(self, flag: bool) -> bool:
        tensor = torch.tensor([float(flag)], device=self.compute.device)
        dist.broadcast(tensor, src=0)
        return bool(tensor.item())

    @contextmanager
    def whole(self, parameters: Sequence[Tensor]) -> Iterator[bool]:
        with deepspeed.zero.GatheredParameters(list(parameters), enabled=self._stage == 3):
            yield self._stage == 3

    def trained_state(self) -> Mapping[str, Tensor] | None:
        state = {}
        for name, parameter in self._named.items():
            with self.whole([parameter]):
                if self.rank == 0:
                    state[name] = parameter.detach().cpu().clone()
        return state if self.rank == 0 else None

    def weight_parts(self) -> Iterator[Part]:
        for name, parameter in self._named.items():
            begin, end = self._range_of(parameter)
            if end > begin:
                flat = parameter.ds_tensor[: end - begin] if self._stage == 3 else parameter.flatten()[begin:end]
                yield Part(f"{WEIGHT}/{name}", flat, begin, shape_of(parameter))

    def optimizer_parts(self) -> Iterator[Part]:
        if not self._base_optimizer.state:  # before the first update
            return
        for name, parameter in self._named.items():
            begin, end = self._range_of(parameter, of_optimizer=True)
            if end > begin:
                for key in STATE_KEYS[self._settings.optimizer]:
                    flat = self._state_of(parameter, key, begin, end)
                    yield Part(f"{key}/{name}", flat, begin, shape_of(parameter))

    def load_optimizer(self, parts: Parts, num_updates: int) -> None:
        self._allocate_state(num_updates)
        for name, parameter in self._named.items():
            begin, end = self._range_of(parameter, of_optimizer=True)
            for key in STATE_KEYS[self._settings.optimizer]:
                if f"{key}/{name}" in parts:
                    parts.check_shape(f"{key}/{name}", shape_of(parameter))
                    if self._stage == 0:
                        state = self._base_optimizer.state[parameter][key]
                        state.copy_(parts.whole(f"{key}/{name}"))
                    elif self._stage < 3 and end > begin:
                        state = parameter._hp_mapping.get_optim_state_fragment(key)
                        state.copy_(parts.read(f"{key}/{name}", begin, end))
                    elif self._stage == 3:  # every rank's partition has one size; padding ends the last
                        flat = parts.read(f"{key}/{name}", begin, end) if end > begin else torch.zeros(0)
                        padded = functional.pad(flat, (0, parameter.ds_tensor.numel() - flat.numel()))
                        safe_set_local_optimizer_state(parameter, padded.to(self.compute.device), key)

    def _range_of(self, parameter: Any, *, of_optimizer: bool = False) -> tuple[int, int]:
        """Begin and end of this rank's range of a flattened parameter; an even share of what every rank holds whole."""
        if self._stage == 3:
            return partition_of(parameter, self.rank)
        if of_optimizer and self._stage:
            mapping = parameter._hp_mapping  # None where the parameter is in other ranks' partitions
            address = mapping and mapping.lp_fragment_address
            return (address.start, address.start + address.numel) if address else (0, 0)
        return share_of(parameter.numel(), self.rank, self.ranks)

    def _state_of(self, parameter: Any, key: str, begin: int, end: int) -> Tensor:
        """This rank's range of the optimizer's state of a parameter, (end - begin,) float32."""
        if self._stage == 0:
            state: Tensor = self._base_optimizer.state[parameter][key].flatten()[begin:end]
        elif self._stage < 3:
            state = parameter._hp_mapping.get_optim_state_fragment(key)
        else:
            state = safe_get_local_optimizer_state(parameter, key)[: end - begin]
        return state

    def _allocate_state(self, num_updates: int) -> None:
        """Allocate the state that torch's optimizer would make on its first update, to load into."""
        optimizer = self.model.optimizer
        for partition in self._partitions():
            self._base_optimizer.state[partition] = {
                "step": torch.tensor(float(num_updates), device=partition.device),
                **{key: torch.zeros_like(partition) for key in STATE_KEYS[self._settings.optimizer]},
            }
        if self._stage in (1, 2):
            optimizer._lazy_init_hp_params_optimizer_state()

    def _partitions(self) -> list[Tensor]:
        """This rank's float32 tensors that torch's optimizer updates."""
        optimizer = self.model.optimizer
        if self._stage == 0:
            return list(self._named.values())
        if self._stage == 3:
            return list(optimizer.fp32_partitioned_groups_flat)
        return list(optimizer.single_partition_of_fp32_groups)


def shape_of(parameter: Any) -> tuple[int, ...]:
    """Shape of a parameter, also of one that ZeRO-3 has partitioned."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def partition_of(parameter: Any, rank: int) -> tuple[int, int]:
    """Begin and end of a rank's range of a flattened parameter under ZeRO-3, without padding."""
    size = parameter.ds_tensor.numel()
    return min(rank * size, parameter.ds_numel), min((rank + 1) * size, parameter.ds_numel)


def load_weights(model: Any, parts: Parts) -> None:
    """Load the trainable parameters of a save into a model before `DeepSpeedBackend` takes it; each rank its own.

    Raises:
        IntegrityError: a parameter is missing, or of another shape.
    """
    for name, parameter in model.named_parameters():
        parts.check_shape(f"{WEIGHT}/{name}", shape_of(parameter))
        if not hasattr(parameter, "ds_tensor"):
            parameter.data.copy_(parts.whole(f"{WEIGHT}/{name}"))
            continue
        begin, end = partition_of(parameter, dist.get_rank())
        if end > begin:
            parameter.ds_tensor.data[: end - begin].copy_(parts.read(f"{WEIGHT}/{name}", begin, end))


def load_for_ranks(folder: Path, settings: Settings, compute: Compute) -> Any:
    """Load a model for `DeepSpeedBackend`; every rank calls it.

    Under ZeRO-3 each parameter is sharded as it is created, and the first rank reads the files. Packed attention is
    checked once DeepSpeed gathers the weights for a forward pass, in `DeepSpeedBackend`.

    Raises:
        ModelError: see `load_scored`.
    """
    if settings.training.zero_stage != 3:
        return load_scored(folder, settings, compute)
    from transformers.integrations import HfDeepSpeedConfig

    sharding = HfDeepSpeedConfig(engine_config(settings.training, compute))  # transformers finds it while it exists
    model = load_model(folder, settings.model, device=compute.device)
    del sharding
    return model
