"""DeepSpeed ZeRO 0 to 3 on any number of ranks, on GPUs and on CPUs.

The module's weights stay float32 and autocast does the mixed precision, as in the plain backend and in ref-logprob:
DeepSpeed's own bf16 mode would run the residual stream in bf16, and the policy would not start as its reference.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)
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
from spin_components.training.optimizer import STATE_KEYS, StateWriter, build_optimizer, read_state

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

    def policy_state(self) -> Mapping[str, Tensor] | None:
        if self._stage < 3:
            return self._module.state_dict() if self.rank == 0 else None
        state = {name: buffer for name, buffer in self._module.state_dict().items() if name not in self._named}
        for name, parameter in self._named.items():
            with deepspeed.zero.GatheredParameters(parameter):
                if self.rank == 0:
                    state[name] = parameter.detach().cpu().clone()
        if self.rank:
            return None
        tied = getattr(self._module, "all_tied_weights_keys", None) or {}
        for copy, source in dict(tied).items():
            if copy in state and source in self._named:
                state[copy] = state[source]
        return state

    def trained_state(self) -> Mapping[str, Tensor] | None:
        state = {}
        for name, parameter in self._named.items():
            with deepspeed.zero.GatheredParameters(parameter):  # does nothing for a parameter that is not sharded
                if self.rank == 0:
                    state[name] = parameter.detach().cpu().clone()
        return state if self.rank == 0 else None

    def save_optimizer(self, folder: Path) -> None:
        writer = StateWriter(folder) if self.rank == 0 else None
        for name, parameter in self._named.items():
            for key in STATE_KEYS[self._settings.optimizer]:
                tensor = self._get_state(parameter, key)
                if writer and tensor is not None:
                    writer.add(f"{key}/{name}", tensor)
        if writer:
            writer.close()

    def load_optimizer(self, folder: Path, num_updates: int) -> None:
        self._allocate_state(num_updates)
        for key_and_name, tensor in read_state(folder):
            key, _, name = key_and_name.partition("/")
            self._set_state(self._named[name], key, tensor.to(self.compute.device))

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

    def _get_state(self, parameter: nn.Parameter, key: str) -> Tensor | None:
        if self._stage:
            state: Tensor | None = safe_get_full_optimizer_state(parameter, key)
        else:
            state = self._base_optimizer.state[parameter].get(key)
        return state

    def _set_state(self, parameter: Any, key: str, value: Tensor) -> None:
        if self._stage == 0:
            self._base_optimizer.state[parameter][key].copy_(value)
        elif self._stage < 3:
            safe_set_full_optimizer_state(parameter, value, key)
        else:  # the last partition is padded if ranks do not divide the parameter; the "full" call refuses that
            size = parameter.partition_numel()
            padded = functional.pad(value.flatten(), (0, size * self.ranks - value.numel()))
            safe_set_local_optimizer_state(parameter, padded[size * self.rank : size * (self.rank + 1)], key)


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
