"""Model folders in Hugging Face layout: checks and copies of their files, without loading a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from spin_components.errors import ModelError
from spin_components.settings.run import ModelSettings
from spin_components.store.model_files import (
    ADAPTER_CONFIG,
    INDEX,
    WEIGHTS,
    StoredWeight,
    check_no_pointer,
    model_names,
    read_headers,
    some_of,
    weight_files,
)

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_TABLES = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_QUANTIZATIONS = ("quantization_config", "compression_config")
_SMALL_FLOATS = ("F8_", "F6_", "F4")
_SMALL_INTEGERS = ("I8", "U8", "I4", "U4")


def check_model_folder(folder: Path, *, what: str, address: str = "", quantize: str = "none") -> dict[str, Any]:
    """Check that a folder has the files of a model, and return its parsed `config.json`.

    Args:
        folder: local path.
        what: name of the setting that gave the path, for error messages.
        address: value of that setting; the folder by default.
        quantize: `lora.quantize`; a model that bitsandbytes stored so is no error.

    Raises:
        ModelError: it is not a folder, has no config.json, no safetensors or no tokenizer, or holds a Git LFS pointer,
            a damaged weights file, quantized weights, or an adapter alone.
    """
    address = address or str(folder)
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise ModelError(f"{what} = {address!r} {problem}; expected a folder in Hugging Face layout, or builtin:NAME")
    config = _read_config(folder, what, address)
    is_stored_so = quantize == "nf4" and _four_bits(config) == "nf4"
    if not is_stored_so:
        _check_unquantized(config, {}, what, address)
    files = weight_files(folder, config)
    if not files:
        if (folder / ADAPTER_CONFIG).is_file():
            raise _adapter_alone(folder, what, address)
        others = sorted(path.name for path in folder.glob("*.safetensors"))
        found = f" (there is {some_of(others)})" if others else ""
        raise ModelError(
            f"{what} = {address!r} has no *.safetensors, the only format that is read: expected {WEIGHTS}, or "
            f"{INDEX} and the files that it names{found}; save the model as safetensors with save_pretrained"
        )
    for name in _TOKENIZERS:
        if (folder / name).is_file():
            check_no_pointer(folder / name)
    headers = read_headers(files)
    if not is_stored_so:
        _check_unquantized(config, headers, what, address)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ModelError(f"{what} = {address!r} has no tokenizer; save it beside the weights with save_pretrained")
    for name in _TABLES:
        if (folder / name).is_file():
            _read_table(folder / name, f"{address}/{name}")
    generation_eos(folder, config)
    return config


def _read_config(folder: Path, what: str, address: str) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        if (folder / ADAPTER_CONFIG).is_file():
            raise _adapter_alone(folder, what, address)
        raise ModelError(f"{what} = {address!r} has no config.json; expected a Hugging Face model folder")
    return _read_table(path, f"{address}/config.json")


def _read_table(path: Path, address: str) -> dict[str, Any]:
    """The JSON object in a file; raises ModelError where it holds anything else."""
    check_no_pointer(path)
    try:
        table = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{address} is not JSON: {error}; download it again") from error
    if not isinstance(table, dict):
        raise ModelError(
            f"{address} holds {type(table).__name__}, expected a JSON object; download it again, or save the model "
            "with save_pretrained"
        )
    return table


def _adapter_alone(folder: Path, what: str, address: str) -> ModelError:
    base = ""
    with suppress(OSError, ValueError, AttributeError):
        base = json.loads((folder / ADAPTER_CONFIG).read_bytes()).get("base_model_name_or_path") or ""
    onto = f" made on {base!r}" if base else ""
    return ModelError(
        f"{what} = {address!r} holds an adapter{onto} and no model; merge it into its base "
        "(peft: merge_and_unload, then save_pretrained) and name the merged model"
    )


def _four_bits(config: Mapping[str, Any]) -> str:
    """The type of the 4-bit numbers that bitsandbytes stored a model in, `nf4` or `fp4`; "" for other models."""
    named = config.get("quantization_config")
    if not isinstance(named, Mapping) or named.get("quant_method") != "bitsandbytes" or not named.get("load_in_4bit"):
        return ""
    return str(named.get("bnb_4bit_quant_type") or "fp4")


def _check_unquantized(config: Mapping[str, Any], weights: Mapping[str, StoredWeight], what: str, address: str) -> None:
    """Refuse a model whose stored weights are quantized, by its `config.json` or by the types of its weights."""
    nested = config.get("text_config")
    tables = [config, nested] if isinstance(nested, Mapping) else [config]
    named = next((table[key] for table in tables for key in _QUANTIZATIONS if table.get(key)), None)
    if _four_bits(config) == "nf4":
        raise ModelError(
            f"{what} = {address!r} is stored in 4 bits by bitsandbytes (nf4), so only an adapter on it can be trained: "
            "set lora.r, lora.quantize = 'nf4' and lora.export = 'adapter', or name the unquantized model that it was "
            "made from"
        )
    if named is not None:
        method = named.get("quant_method") if isinstance(named, Mapping) else named
        found = f"config.json says {method or 'quantization_config'}"
        if method == "bitsandbytes":
            found += f", {_four_bits(config) or '8 bits'}, and 4 bits of type nf4 are read alone"
    else:
        names = [
            name
            for name, weight in weights.items()
            if weight.dtype.startswith(_SMALL_FLOATS)
            or (name.endswith(".weight") and weight.dtype in _SMALL_INTEGERS)
            or name.endswith((".qweight", ".qzeros"))
        ]
        if not names:
            return
        found = f"{min(names)} is stored as {weights[min(names)].dtype}"
    raise ModelError(
        f"{what} = {address!r} is quantized ({found}), which can neither be trained nor published as it is; "
        "name the unquantized model that it was made from. lora.quantize = 'nf4' trains an adapter on that in 4 bits"
    )


def generation_eos(folder: Path, config: Mapping[str, Any]) -> int | list[int] | None:
    """`eos_token_id` of `generation_config.json`, or of `config.json` where that has none.

    Raises:
        ModelError: it is neither a token id nor a list of token ids.
    """
    value, name = None, "generation_config.json"
    with suppress(FileNotFoundError, ValueError, AttributeError):
        value = json.loads((folder / name).read_bytes()).get("eos_token_id")
    if value is None:
        value, name = config.get("eos_token_id"), "config.json"
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in ids):
        raise ModelError(
            f"{folder / name}: eos_token_id is {value!r}, expected a token id or a list of them; correct it"
        )
    return value


def copy_companions(like: Path, folder: Path) -> None:
    """Copy a model's files but its weights from one folder to another, with float32 as the dtype in `config.json`.

    What is said there of a quantization is left out, since the weights beside it are float32.
    """
    config = json.loads((like / "config.json").read_bytes())
    weights = {path.relative_to(like).as_posix() for path in weight_files(like, config)} | {WEIGHTS, INDEX}
    for name in model_names(like, config):
        if name not in weights:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(like / name, folder / name)
    for name in ("torch_dtype", "transformers_weights", "quantization_config"):
        config.pop(name, None)
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
    except Exception as error:  # tokenizers raises plain Exception for a file that it cannot read
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the tokenizer in {folder} cannot be loaded by tokenizers {metadata.version('tokenizers')} and "
            f"transformers {metadata.version('transformers')} ({type(error).__name__}: {reason}); if it was saved by a "
            "newer release, install that, else download the tokenizer again"
        ) from error
