"""Plain torch on one device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from spin_components.model.compute import Compute
from spin_components.settings.training import TrainingSettings
from spin_components.training.optimizer import STATE_KEYS, build_optimizer
from spin_components.training.parts import WEIGHT, Part, Parts


class TorchBackend:
    """One rank in plain torch. See `Backend` for the methods."""

    rank, ranks = 0, 1
    needs_filling = False

    def __init__(self, model: Any, settings: TrainingSettings, compute: Compute) -> None:
        self.model, self.compute = model, compute
        self._settings = settings
        self._named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._optimizer = build_optimizer(settings, [parameter for _, parameter in self._named])

    def backward(self, loss: Tensor, *, is_last: bool = True) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def check_gradients(self) -> str | None:
        if torch.isfinite(self._norm()):  # one pass; the parameter is looked for only where it is not
            return None
        return next((name for name, p in self._named if p.grad is not None and not p.grad.isfinite().all()), None)

    def clip_and_step(self, lr: float) -> float:
        norm = self._norm()
        if limit := self._settings.gradient_clip_val:
            parameters = [parameter for _, parameter in self._named]
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm, foreach=True)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def _norm(self) -> Tensor:
        return torch.nn.utils.get_total_norm([p.grad for _, p in self._named if p.grad is not None])

    def reduce_sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def agree(self, flag: bool) -> bool:
        return flag

    def whole(self, parameters: Sequence[Tensor]) -> AbstractContextManager[bool]:
        return nullcontext(False)

    def trained_state(self) -> Mapping[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._named}

    def weight_parts(self) -> Iterator[Part]:
        for name, parameter in self._named:
            yield Part(f"{WEIGHT}/{name}", parameter)

    def optimizer_parts(self) -> Iterator[Part]:
        for name, parameter in self._named:
            for key in STATE_KEYS[self._settings.optimizer]:
                if key in self._optimizer.state[parameter]:
                    yield Part(f"{key}/{name}", self._optimizer.state[parameter][key])

    def load_optimizer(self, parts: Parts, num_updates: int) -> None:
        for name, parameter in self._named:
            for key in STATE_KEYS[self._settings.optimizer]:
                if f"{key}/{name}" in parts:
                    parts.check_shape(f"{key}/{name}", parameter.shape)
                    self._optimizer.state[parameter][key] = parts.whole(f"{key}/{name}").to(parameter, copy=True)
                    self._optimizer.state[parameter]["step"] = torch.tensor(float(num_updates), device=parameter.device)
