"""Files of an adapter: peft's two, a reference to its base, and the tokenizer.

    adapter_config.json            peft's configuration; names the base by its address
    adapter_model.safetensors      A and B of each adapted layer, float32
    base.json                      address and digest of the model that the adapter was trained on
    tokenizer.json                 a copy of the base's, so that a report can show text without fetching the base

The base of an adapter of iteration t is the policy of iteration t - 1, and so on down to the base model: a chain.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from spin_components.errors import IntegrityError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
BASE = "base.json"
_TOKENIZER = "tokenizer.json"
_PREFIX = "base_model.model."
"""Prefix of peft to the names of a model's layers in a file of adapter weights."""


class Base(BaseModel):
    """The model that an adapter was trained on.

    Attributes:
        uri: address of the run's base model, or of a policy of the run; of a policy, relative to the run.
        sha256: its digest, see `model.stored.model_digest`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str
    sha256: str


def write_adapter(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], base: Base, like: Path, address: str = ""
) -> None:
    """Write an adapter's folder.

    Args:
        folder: to be created.
        config: peft's configuration, as plain JSON.
        weights: by name, `LAYER.lora_A.weight` and `LAYER.lora_B.weight`; written as float32.
        base: the model that the adapter was trained on.
        like: folder of a model with the tokenizer.
        address: of the base for peft, where `base` has an address relative to the run.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    plain = {f"{_PREFIX}{name}": tensor.detach().float().cpu().contiguous() for name, tensor in weights.items()}
    save_file(plain, folder / WEIGHTS, metadata={"format": "pt"})
    named = {**config, "base_model_name_or_path": address or base.uri}
    (folder / CONFIG).write_text(json.dumps(named, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / BASE).write_text(base.model_dump_json(indent=2) + "\n", encoding="utf-8")
    copy_tokenizer(like, folder)


def copy_tokenizer(like: Path, folder: Path) -> None:
    """Copy a model's `tokenizer.json`, if it has one."""
    if (like / _TOKENIZER).is_file():
        shutil.copyfile(like / _TOKENIZER, folder / _TOKENIZER)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the weights that `write_adapter` wrote, under the same names."""
    from safetensors.torch import load_file

    return {name.removeprefix(_PREFIX): tensor for name, tensor in load_file(folder / WEIGHTS).items()}


def read_config(folder: Path) -> dict[str, Any]:
    """Read peft's configuration of an adapter."""
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text("utf-8"))
    return config


def read_base(folder: Path) -> Base:
    """Read which model an adapter was trained on.

    Raises:
        IntegrityError: `base.json` is missing or invalid.
    """
    try:
        return Base.model_validate_json((folder / BASE).read_text("utf-8"))
    except (OSError, ValidationError) as error:
        raise IntegrityError(f"{folder / BASE} does not name the adapter's base model: {error}") from error
