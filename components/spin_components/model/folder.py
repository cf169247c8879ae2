"""Model folders in Hugging Face layout: checks and copies of their files, without loading a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from spin_components.errors import ModelError
from spin_components.settings.run import ModelSettings

WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json")


FOREIGN_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.gguf")


def check_model_folder(folder: Path, *, what: str, address: str = "") -> dict[str, Any]:
    """Check that a folder has the files of a model, and return its parsed `config.json`.

    Args:
        folder: local path.
        what: name of the setting that gave the path, for error messages.
        address: value of that setting; the folder by default.

    Raises:
        ModelError: it is not a folder, or has no config.json, no safetensors or no tokenizer.
    """
    address = address or str(folder)
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise ModelError(f"{what} = {address!r} {problem}; expected a folder in Hugging Face layout, or builtin:NAME")
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError as error:
        raise ModelError(f"{what} = {address!r} has no config.json; expected a Hugging Face model folder") from error
    except ValueError as error:
        raise ModelError(f"{address}/config.json is not JSON: {error}") from error
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{what} = {address!r} has no *.safetensors, the only format that is read; save the model as safetensors"
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(f"{what} = {address!r} has no tokenizer; save it beside the weights with save_pretrained")
    return dict(config)


def generation_eos(folder: Path, config: Mapping[str, Any]) -> int | list[int] | None:
    """`eos_token_id` of `generation_config.json`, or of `config.json` where that has none."""
    with suppress(FileNotFoundError, ValueError):
        value = json.loads((folder / "generation_config.json").read_bytes()).get("eos_token_id")
        if value is not None:
            return value  # type: ignore[no-any-return]
    return config.get("eos_token_id")


def copy_companions(like: Path, folder: Path) -> None:
    """Copy all files but the weights from one model folder to another, with float32 as the dtype in `config.json`."""
    for path in sorted(like.iterdir()):
        if (
            path.is_file()
            and not path.name.startswith(".")
            and not any(path.match(pattern) for pattern in (*WEIGHT_PATTERNS, *FOREIGN_WEIGHTS))
        ):
            shutil.copyfile(path, folder / path.name)
    config = json.loads((like / "config.json").read_bytes())
    config.pop("torch_dtype", None)
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(folder: Path, settings: ModelSettings) -> Any:
    """Load the tokenizer of a model folder.

    Raises:
        ModelError: transformers cannot load it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"the tokenizer in {folder} cannot be loaded: {error}") from error
