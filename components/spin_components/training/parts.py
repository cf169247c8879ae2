"""The files of a training state: each rank writes the ranges of weights and optimizer state that it holds.

A file is safetensors with float32 tensors named KIND/PARAMETER, such as `exp_avg/model.norm.weight`. A tensor is whole,
or the range of a flattened one; then the file's metadata has the entry `ranges`, JSON of the range's begin and the
whole tensor's shape by name. The ranges of all files together make every tensor, so any backend and any number of ranks
reads what it needs of them, memory-mapped.

Why this format. DeepSpeed's own files are pickles, one a rank, for the number of ranks and the stage that wrote them.
`torch.distributed.checkpoint` reads its index with pickle as well, and describes shards as boxes of tensors, while ZeRO
holds ranges of flattened ones: stages 1 and 2 cut wherever a rank's share of all parameters ends, stage 3 pads each
parameter's last range. Nothing here is unpickled, no rank needs another's to write, and a file of one rank is the file
of named tensors that earlier versions wrote.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spin_components.errors import IntegrityError

WEIGHT = "weight"
"""Kind of the model's parameters; the other kinds are those of the optimizer's state."""

_MAX_FILE_BYTES = 2**29
_RANGES = "ranges"


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank holds of a tensor.

    Attributes:
        name: KIND/PARAMETER.
        tensor: the whole tensor, or (n,) a range of the flattened one.
        begin: of the range.
        shape: of the whole tensor, for a range.
    """

    name: str
    tensor: Tensor
    begin: int = 0
    shape: tuple[int, ...] | None = None


def share_of(numel: int, rank: int, ranks: int) -> tuple[int, int]:
    """Begin and end of a rank's range of a tensor that all ranks hold whole."""
    return numel * rank // ranks, numel * (rank + 1) // ranks


def write_parts(folder: Path, stem: str, parts: Iterable[Part]) -> None:
    """Write parts to numbered files `STEM-00000.safetensors`, holding copies for at most one file in memory.

    Args:
        folder: of the files; created where it is missing.
        stem: of the files' names.
        parts: converted to float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held, ranges, num_bytes, num_files = dict[str, Tensor](), dict[str, list[int]](), 0, 0

    def close() -> None:
        nonlocal held, ranges, num_bytes, num_files
        if held:
            metadata = {_RANGES: json.dumps(ranges)} if ranges else None
            save_file(held, folder / f"{stem}-{num_files:05d}.safetensors", metadata)
            held, ranges, num_bytes, num_files = {}, {}, 0, num_files + 1

    for part in parts:
        if part.shape is not None:
            ranges[part.name] = [part.begin, *part.shape]
        held[part.name] = part.tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
        num_bytes += held[part.name].nbytes
        if num_bytes >= _MAX_FILE_BYTES:
            close()
    close()


@dataclass(frozen=True, slots=True)
class _Range:
    """Where a range of a flattened tensor is: `is_flat` for a tensor of the file that is that range itself."""

    begin: int
    end: int
    file: int
    is_flat: bool


class Parts:
    """Reads tensors, or ranges of them, from the files that `write_parts` wrote on all ranks.

    Args:
        files: of one save; none of them may lack.

    Raises:
        IntegrityError: the files do not make whole tensors.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._paths = list(files)
        self._files: list[Any] = []
        self._ranges: dict[str, list[_Range]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for number, path in enumerate(self._paths):
            try:
                self._files.append(safe_open(path, framework="pt"))
                self._add(number)
            except (SafetensorError, ValueError, TypeError, IndexError, AttributeError, RecursionError) as error:
                raise IntegrityError(f"{path} is not a part of a training state ({error}); {_REMEDY}") from error
        for name, ranges in self._ranges.items():
            ranges.sort(key=lambda each: each.begin)
            ends = [0, *(each.end for each in ranges)]
            if [each.begin for each in ranges] != ends[:-1] or ends[-1] != math.prod(self._shapes[name]):
                raise IntegrityError(
                    f"{name} of {self._shapes[name]} is stored in the ranges "
                    f"{', '.join(f'{each.begin}:{each.end}' for each in ranges[:8])}, which do not make a whole; the "
                    f"files lie in {self._paths[ranges[0].file].parent}; {_REMEDY}"
                )

    def _add(self, number: int) -> None:
        file = self._files[number]
        stored = json.loads((file.metadata() or {}).get(_RANGES, "{}"))
        for name in file.keys():  # noqa: SIM118  # not a dict
            shape = tuple(int(size) for size in file.get_slice(name).get_shape())
            begin, *whole = [int(size) for size in stored[name]] if name in stored else [0, *shape]
            length = math.prod(shape)
            if (name in stored and len(shape) != 1) or begin < 0 or any(size < 0 for size in whole):
                raise ValueError(f"{name} has the shape {list(shape)} and the range {stored.get(name)}")
            if self._shapes.setdefault(name, tuple(whole)) != tuple(whole):
                raise ValueError(f"{name} is of {whole} here, of {self._shapes[name]} in another file")
            self._ranges.setdefault(name, []).append(_Range(begin, begin + length, number, name in stored))

    def __iter__(self) -> Iterator[str]:
        return iter(self._ranges)

    def __contains__(self, name: str) -> bool:
        return name in self._ranges

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a whole tensor."""
        return self._shapes[name]

    def read(self, name: str, begin: int, end: int) -> Tensor:
        """Read the range of a flattened tensor; (end - begin,) float32."""
        pieces = []
        for each in self._ranges[name]:
            first, last = max(begin, each.begin), min(end, each.end)
            if first < last:
                file = self._files[each.file]
                flat = file.get_slice(name) if each.is_flat else file.get_tensor(name).flatten()
                pieces.append(flat[first - each.begin : last - each.begin])
        return torch.cat(pieces) if len(pieces) != 1 else pieces[0]

    def whole(self, name: str) -> Tensor:
        """Read a whole tensor."""
        shape = self._shapes[name]
        return self.read(name, 0, math.prod(shape)).reshape(shape) if math.prod(shape) else torch.zeros(shape)

    def check_shape(self, name: str, shape: Sequence[int]) -> None:
        """Check that a stored tensor is of a shape.

        Raises:
            IntegrityError: it is not, or is missing.
        """
        if self._shapes.get(name) != tuple(shape):
            raise IntegrityError(
                f"the training state has {name} of {self._shapes.get(name)}, expected {tuple(shape)}; {_REMEDY}"
            )


def load_whole(model: Any, parts: Parts) -> None:
    """Load the trainable parameters of a save into a model that this process holds whole.

    Raises:
        IntegrityError: a parameter is missing, or of another shape.
    """
    for name, parameter in model.named_parameters():
        parts.check_shape(f"{WEIGHT}/{name}", parameter.shape)
        parameter.data.copy_(parts.whole(f"{WEIGHT}/{name}"))


_REMEDY = "delete the partial.json of its epoch to train the epoch from its beginning"
