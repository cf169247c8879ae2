"""The files of a model folder: those that are loaded, their headers, and unrelated files beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from spin_components.errors import ModelError
from spin_components.store.keys import flaw_of, shown

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"

_BESIDE = (
    *("*.safetensors", "*.safetensors.index.json"),  # those that are not loaded: `consolidated`, of an adapter
    *("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.gguf", "*.ckpt", "*.tflite", "*.ot"),
    *("*.npz", "*.pkl", "*.distcp", "*.tar", "*.bin.index.json", "adapter_config.json", "adapter_model*"),
    *("trainer_state.json", "*.tfevents.*"),
)
"""Names of files that no loader of the model reads: weights in other formats, adapters, what a trainer leaves."""

_IN_FOLDERS = ("*.py", "*.jinja")
"""Names of files in subfolders that belong to a model: its code, and further chat templates."""

_POINTER = b"version https://git-lfs.github.com/spec/"
_FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """One tensor of a safetensors file, as the header describes it.

    Attributes:
        dtype: safetensors' name of its type, such as `BF16`.
        shape: its dimensions.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether its numbers are floating-point numbers of 16 bits or more."""
        return self.dtype in _FLOATS


def weight_files(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """Return the safetensors files that a model is loaded from; empty if there are none.

    As transformers chooses: the file that `config.json` names in `transformers_weights`, else `model.safetensors`, else
    the files that the index names.

    Raises:
        ModelError: the index is invalid or names a file that does not exist.
    """
    named = config.get("transformers_weights")
    names = [named] if isinstance(named, str) else [WEIGHTS, INDEX]
    if flawed := [name for name in names if flaw_of(name)]:
        raise ModelError(
            f"{folder / 'config.json'}: transformers_weights names the file {shown(flawed[0])}, which "
            f"{flaw_of(flawed[0])}; expected a file of the folder. Correct it, or download the model again"
        )
    found = next((name for name in names if (folder / name).is_file()), None)
    if found is None:
        return []
    if not found.endswith(".index.json"):
        return [folder / found]
    names = shards_of((folder / found).read_bytes(), what=f"{folder / found}")
    if lost := [name for name in names if flaw_of(name) or not (folder / name).is_file()]:
        raise ModelError(
            f"{folder / found} names {len(names)} files, of which {some_of(lost)} are not in the folder; "
            "download the model again"
        )
    return [folder / name for name in names]


def shards_of(index: bytes, *, what: str) -> list[str]:
    """Return the file names in an index of sharded weights.

    Raises:
        ModelError: it is not an index.
    """
    try:
        names = sorted(set(json.loads(index)["weight_map"].values()))
        if not all(isinstance(name, str) and "\0" not in name for name in names):
            raise ValueError("the name of a file is no text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{what} is not an index of safetensors files; download the model again") from error
    return names


def read_header(path: Path) -> dict[str, StoredWeight]:
    """Read the header of a safetensors file, which is 8 bytes of length and JSON of that length.

    Raises:
        ModelError: the file is a Git LFS pointer, has no valid header, is shorter than its header says, or has offsets
            that contradict its shapes.
    """
    from safetensors import SafetensorError, safe_open  # not for commands that only submit

    check_no_pointer(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size - 8:
                raise ValueError(f"the file has {size} bytes, its header alone would have {length}")
            header = json.loads(file.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        weights = {name: _stored_weight(name, entry) for name, entry in tensors.items()}
    except (
        *(OSError, ValueError, KeyError, IndexError),
        *(TypeError, AttributeError, OverflowError, MemoryError, RecursionError),
    ) as error:
        raise ModelError(f"{path} is not a safetensors file: its header cannot be read ({error})") from error
    if size < end:
        raise ModelError(f"{path} has {size} bytes, its header says {end}; download it again")
    try:
        with safe_open(path, framework="np"):
            return weights
    except SafetensorError as error:
        raise ModelError(f"{path} contradicts itself: {error}; download it again") from error


def _stored_weight(name: str, entry: Mapping[str, Any]) -> StoredWeight:
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(dtype, str) and all(isinstance(number, int) and number >= 0 for number in [*shape, begin, end])):
        raise ValueError(f"the entry of {name} has no dtype, shape and offsets")
    return StoredWeight(dtype, tuple(shape))


def read_headers(files: Iterable[Path]) -> dict[str, StoredWeight]:
    """Read the headers of all files of one model; raises as `read_header`."""
    return {name: weight for path in files for name, weight in read_header(path).items()}


def count_parameters(weights: Mapping[str, StoredWeight], *, is_tied: bool) -> int:
    """Count the numbers of a model, with those of an output layer that is tied to the embedding counted once."""
    tied = next((name for name in weights if name.endswith("lm_head.weight")), None) if is_tied else None
    embedded = any(
        weight.shape == weights[tied].shape for name, weight in weights.items() if tied is not None and name != tied
    )
    return sum(math.prod(weight.shape) for name, weight in weights.items() if not (embedded and name == tied))


def check_no_pointer(path: Path) -> None:
    """Check that a file is not the pointer which Git leaves where Git LFS is not installed.

    Raises:
        ModelError: it is one.
    """
    with path.open("rb") as file:
        start = file.read(len(_POINTER))
    if start == _POINTER:
        raise ModelError(
            f"{path} is a Git LFS pointer, not the file itself: the model was cloned without git-lfs; "
            "run 'git lfs pull' in the folder, or download the model again"
        )


def model_names(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Return the paths, relative to the folder, of the files that belong to its model, sorted.

    Everything else is unrelated: weights that are not loaded, adapters, optimizer states, `original/`.

    Raises:
        ModelError: the index is invalid or names a file that does not exist.
    """
    loaded = {path.relative_to(folder).as_posix() for path in weight_files(folder, config)}
    if loaded and WEIGHTS not in loaded:
        loaded |= {INDEX, str(config.get("transformers_weights"))}
    return [name for name in _visible(folder) if name in loaded or _belongs(name)]


def link_model(folder: Path, config: Mapping[str, Any], view: Path) -> Path:
    """Return a folder with nothing but the files of a model: the folder itself, or else a new one of links to them.

    Args:
        folder: of the model.
        config: its parsed `config.json`.
        view: to be created, if the folder has unrelated files.
    """
    names = model_names(folder, config)
    if len(names) == len(_visible(folder)):
        return folder
    for name in names:
        (view / name).parent.mkdir(parents=True, exist_ok=True)
        (view / name).symlink_to((folder / name).absolute())
    return view


def _visible(folder: Path) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))


def _belongs(name: str) -> bool:
    """Whether a file that holds none of the model's weights belongs to it."""
    *folders, file = name.split("/")
    if folders:
        return any(fnmatch(file, pattern) for pattern in _IN_FOLDERS)
    return not any(fnmatch(file, pattern) for pattern in _BESIDE)


def some_of(names: Collection[str], limit: int = 3) -> str:
    """The first names of a list, for a message, and how many more there are."""
    listed = sorted(names)
    return ", ".join(listed[:limit]) + (f" and {len(listed) - limit} more" if len(listed) > limit else "")
