"""An adapter as files: peft's own two, and what it sits on.

    adapter_config.json            peft's configuration; its base is named by address
    adapter_model.safetensors      A and B of each adapted layer, float32
    base.json                      address and digest of the policy that the adapter was trained on
    tokenizer.json                 a copy of the base's, so that a report can show text without fetching the base

A policy of iteration t sits on that of iteration t - 1, and so on down to the base model: a chain.
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
"""What peft puts before the names of a model's own layers in a file of adapter weights."""


class Base(BaseModel):
    """What an adapter sits on.

    Attributes:
        uri: of the run's base model, or of another policy of the run.
        sha256: its digest, see `store.models.model_digest`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str
    sha256: str


def write_adapter(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], base: Base, like: Path
) -> None:
    """Write an adapter.

    Args:
        folder: to be created.
        config: peft's, as plain JSON.
        weights: by name, `LAYER.lora_A.weight` and `LAYER.lora_B.weight`.
        base: what it sits on.
        like: folder of a model with the tokenizer.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    plain = {f"{_PREFIX}{name}": tensor.detach().float().cpu().contiguous() for name, tensor in weights.items()}
    save_file(plain, folder / WEIGHTS, metadata={"format": "pt"})
    named = {**config, "base_model_name_or_path": base.uri}
    (folder / CONFIG).write_text(json.dumps(named, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / BASE).write_text(base.model_dump_json(indent=2) + "\n", encoding="utf-8")
    copy_tokenizer(like, folder)


def copy_tokenizer(like: Path, folder: Path) -> None:
    """Copy a model's `tokenizer.json`, if it has one."""
    if (like / _TOKENIZER).is_file():
        shutil.copyfile(like / _TOKENIZER, folder / _TOKENIZER)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """What `write_adapter` was given, by the same names."""
    from safetensors.torch import load_file

    return {name.removeprefix(_PREFIX): tensor for name, tensor in load_file(folder / WEIGHTS).items()}


def read_config(folder: Path) -> dict[str, Any]:
    """peft's configuration of an adapter."""
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text("utf-8"))
    return config


def read_base(folder: Path) -> Base:
    """What an adapter sits on.

    Raises:
        IntegrityError: the file does not say.
    """
    try:
        return Base.model_validate_json((folder / BASE).read_text("utf-8"))
    except (OSError, ValidationError) as error:
        raise IntegrityError(f"{folder / BASE} does not say what the adapter sits on: {error}") from error
