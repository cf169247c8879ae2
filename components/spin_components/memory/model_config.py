"""The shape of a model at any address, read without downloading its weights."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from spin_components.data import builtin
from spin_components.errors import ConfigError, ModelError, SpinError
from spin_components.memory.shape import KNOWN, ModelShape, shape_of_config, shape_of_folder
from spin_components.store.addresses import HubAddress, S3Address, local_path, parse_hub, parse_s3, scheme_of
from spin_components.store.model_files import INDEX, WEIGHTS, shards_of

_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


def find_shape(uri: str, *, what: str) -> tuple[ModelShape, str]:
    """Find a model's shape, and describe where it was read.

    The source is the model's `config.json`, or, where that cannot be read, `shape.KNOWN` by the model's name.

    Args:
        uri: path, `s3://`, `hf://` or `builtin:` address.
        what: name of the setting that gave the address, for error messages.

    Returns: the shape, and its source for people to read.

    Raises:
        ModelError: neither source has it.
        ConfigError: the address is malformed.
    """
    if builtin.is_builtin(uri):
        return _known(builtin.check_builtin(uri, what=what, kinds=builtin.MODELS), what)
    try:
        match scheme_of(uri):
            case "s3":
                return _in_bucket(parse_s3(uri, what=what), what)
            case "hf":
                return shape_of_config(_on_hub(parse_hub(uri, what=what)), what=what), "its config.json on the hub"
            case _:
                return shape_of_folder(local_path(uri, what=what), what=what), "its files"
    except (SpinError, OSError) as error:
        name = uri.rstrip("/").rpartition("/")[2].partition("@")[0]
        if isinstance(error, ConfigError) or name not in KNOWN:
            raise ModelError(f"{what} = {uri!r}: its shape cannot be read from here ({error})") from error
        return _known(name, what)


def _known(name: str, what: str) -> tuple[ModelShape, str]:
    return shape_of_config(KNOWN[name], what=what), f"the built-in configuration of {name}"


def _in_bucket(address: S3Address, what: str) -> tuple[ModelShape, str]:
    from spin_components.store.bucket import Bucket

    bucket, prefix = Bucket(address.bucket), f"{address.key}/" if address.key else ""
    content = bucket.get(f"{prefix}config.json")
    if content is None:
        raise ModelError(f"{what} = '{address}' has no config.json")
    try:
        config: dict[str, Any] = json.loads(content)
    except ValueError as error:
        raise ModelError(f"{what} = '{address}': config.json is not JSON: {error}") from error
    sizes_of = {info.key.removeprefix(prefix): info.num_bytes for info in bucket.objects(prefix)}
    if WEIGHTS in sizes_of:
        names = [WEIGHTS]
    elif index := bucket.get(f"{prefix}{INDEX}"):
        names = shards_of(index, what=f"{address}/{INDEX}")
    else:
        names = [name for name in sizes_of if fnmatch(name, "model*.safetensors") and "/" not in name]
    sizes = [sizes_of.get(name, 0) for name in names]
    num_bytes = _BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 0)
    is_known = num_bytes and not config.get("quantization_config")
    num_parameters = sum(sizes) // num_bytes if is_known else 0  # counts the headers too, a few KiB a file
    shape = shape_of_config(config, what=what, num_parameters=num_parameters)
    return shape, "its config.json and the sizes of its files"


def _on_hub(address: HubAddress) -> dict[str, Any]:
    try:
        import httpx
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ModelError(f"'{address}' needs the package huggingface_hub, which is not installed") from error
    try:
        name = f"{address.path}/config.json".lstrip("/")
        path = Path(hf_hub_download(address.repository, name, revision=address.revision))
        config: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise ModelError(f"'{address}': config.json cannot be read from the hub ({type(error).__name__})") from error
    return config
