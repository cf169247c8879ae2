"""Forward passes of a model whose frozen weights are divided among ranks.

Each parameter of two and more dimensions is cut into as many parts as there are ranks. A pass gathers the weights of
one block at a time, the next one's while a block computes, and drops them after it. Embeddings, output layer and
whatever else is outside of the blocks are gathered for the whole pass. Gathered weights have the bits of those that
one process loads, and so has what is computed with them.

A gather needs every rank. Ranks have passes of their own, as many as their work takes: each begins with a count of the
ranks that compute one, and a rank without further work takes part in the gathers of the others (`ShardedModel.join`)
until none computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from spin_components.errors import ModelError
from spin_components.model.frozen_weights import FrozenWeights, Part

Place = tuple[nn.Module, str]
"""A module and the name of one of its own parameters."""


@dataclass(slots=True)
class _Divided:
    """A parameter that is divided among ranks.

    Attributes:
        part: this rank's.
        stand_in: what the model holds in its place while it is not gathered.
        places: where the model holds it; more than one where it is tied.
        whole: what it is gathered into; None while it is not.
        handle: of the gather.
    """

    part: Part
    stand_in: nn.Parameter
    places: list[Place] = field(default_factory=list)
    whole: Tensor | None = None
    handle: Any = None

    def start(self, ranks: int) -> int:
        """Start to gather it; returns the bytes that this takes."""
        numbers = self.part.numbers
        self.whole = torch.empty(ranks * len(numbers), dtype=numbers.dtype, device=numbers.device)
        # as bytes, since not every transport has bf16
        self.handle = dist.all_gather_into_tensor(
            self.whole.view(torch.uint8), numbers.view(torch.uint8), async_op=True
        )
        return _num_bytes(self.whole)

    def install(self) -> None:
        """Wait until it is gathered, and hand it to the model."""
        assert self.whole is not None
        self.handle.wait()
        whole = self.whole[: self.part.shape.numel()].view(self.part.shape)
        self._place(nn.Parameter(whole, requires_grad=False))

    def drop(self) -> int:
        """Free what was gathered, and return its bytes; 0 where nothing was."""
        if self.whole is None:
            return 0
        self.handle.wait()
        self._place(self.stand_in)
        num_bytes = _num_bytes(self.whole)
        self.whole = self.handle = None
        return num_bytes

    def _place(self, parameter: nn.Parameter) -> None:
        for module, name in self.places:
            module._parameters[name] = parameter


class ShardedModel:
    """The hooks that gather a model's weights for its forward passes; every rank makes one of the same model.

    Args:
        model: of transformers, loaded with `weights`.
        weights: this rank's parts.
        device: of the passes.

    Attributes:
        held_bytes: of the parameters that this rank holds between passes.
        peak_bytes: of the parameters that it has held at most, gathered ones included.
    """

    def __init__(self, model: Any, weights: FrozenWeights, device: torch.device) -> None:
        self._device, self._ranks = device, weights.ranks
        blocks = _blocks(model)
        self._units = _units(model, weights.parts, blocks)
        self._num_started = len(self._units)  # units whose gather this pass has started; all of them between passes
        whole = [each for each in model.parameters() if not each.is_meta]
        parts = [part.numbers for part in weights.parts.values()]
        self.held_bytes = sum(_num_bytes(each) for each in (*whole, *parts))
        self._live_bytes = self.peak_bytes = self.held_bytes
        model.register_forward_pre_hook(self._begin)
        model.register_forward_hook(self._end)
        for number, block in enumerate(blocks, start=1):
            if self._units[number]:
                block.register_forward_pre_hook(self._before(number))
                block.register_forward_hook(self._after(number))

    def join(self) -> None:
        """Take part in the other ranks' passes until no rank computes one."""
        self._close()
        while self._count(0):
            self._num_started = 0
            self._close()

    def _count(self, number: int) -> int:
        """Number of ranks that compute a pass now, where this one counts as `number`."""
        count = torch.tensor([number], device=self._device)
        dist.all_reduce(count)
        return int(count)

    def _begin(self, *_: object) -> None:
        self._close()  # of a pass that ended with an error
        self._count(1)
        self._num_started = 0
        self._start_next()
        self._install(0)
        self._start_next()

    def _end(self, *_: object) -> None:
        self._close()

    def _before(self, number: int) -> Callable[..., None]:
        def install(*_: object) -> None:
            while self._num_started <= number:
                self._start_next()
            for skipped in range(1, number):
                self._drop(skipped)
            if self._units[number][0].whole is None:
                raise ModelError(
                    f"block {number - 1} of the model computes twice in one forward pass, or after a later block: its "
                    "weights cannot be divided among ranks; set hardware.shard_scoring = 'off'"
                )
            self._install(number)
            self._start_next()

        return install

    def _after(self, number: int) -> Callable[..., None]:
        def drop(*_: object) -> None:
            self._drop(number)

        return drop

    def _start_next(self) -> None:
        """Start to gather the next unit, if there is one; ranks gather them in the same order."""
        if self._num_started < len(self._units):
            for each in self._units[self._num_started]:
                self._live_bytes += each.start(self._ranks)
            self.peak_bytes = max(self.peak_bytes, self._live_bytes)
            self._num_started += 1

    def _install(self, number: int) -> None:
        for each in self._units[number]:
            each.install()

    def _drop(self, number: int) -> None:
        for each in self._units[number]:
            self._live_bytes -= each.drop()

    def _close(self) -> None:
        """Free what is gathered, after what this pass has left out was gathered for the other ranks."""
        for number in range(self._num_started):
            self._drop(number)
        while self._num_started < len(self._units):
            self._start_next()
            self._drop(self._num_started - 1)


def _units(model: Any, parts: Mapping[int, Part], blocks: list[nn.Module]) -> list[list[_Divided]]:
    """The divided parameters by the block that alone has them; first those of no block, or of several."""
    blocks_of: dict[int, set[int]] = {}
    for number, block in enumerate(blocks, start=1):
        for module in block.modules():
            blocks_of.setdefault(id(module), set()).add(number)
    divided: dict[int, _Divided] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if id(parameter) in parts:
                each = divided.setdefault(id(parameter), _Divided(parts[id(parameter)], parameter))
                each.places.append((module, name))
    units: list[list[_Divided]] = [[] for _ in range(1 + len(blocks))]
    for each in divided.values():
        numbers = set.union(*(blocks_of.get(id(module), {0}) for module, _ in each.places))
        units[numbers.pop() if len(numbers) == 1 else 0].append(each)
    return units


def _blocks(model: Any) -> list[nn.Module]:
    """The blocks of a model: the members of its outermost list of modules that has the most parameters."""

    def size(modules: nn.ModuleList) -> int:
        return sum(parameter.numel() for parameter in modules.parameters())

    found = max(_outermost_lists(model), key=size, default=nn.ModuleList())
    return list(dict.fromkeys(found))


def _outermost_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _outermost_lists(child)


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
