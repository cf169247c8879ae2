"""The shape of a model that may lie elsewhere, found with as few bytes as there are to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spin_components.errors import ConfigError, ModelError, SpinError
from spin_components.memory.shape import KNOWN, ModelShape, shape_of_config, shape_of_folder
from spin_components.prepare import builtin
from spin_components.store.addresses import HubAddress, S3Address, local_path, parse_hub, parse_s3, scheme_of

_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


def find_shape(uri: str, *, what: str) -> tuple[ModelShape, str]:
    """A model's shape, and where it is from, in words.

    Its own `config.json` where that can be read; else what is known of a model of that name.

    Args:
        uri: path, `s3://`, `hf://` or `builtin:`.
        what: the setting it came from.

    Raises:
        ModelError: neither.
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
    return shape_of_config(KNOWN[name], what=what), f"what is known of {name}"


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
    sizes = [info.num_bytes for info in bucket.objects(prefix) if info.key.endswith(".safetensors")]
    number = _BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 0)
    counted = sum(sizes) // number if number else 0  # headers are a few KiB of each
    return shape_of_config(config, what=what, num_parameters=counted), "its config.json and the sizes of its files"


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
        raise ModelError(f"'{address}': config.json cannot be had from the hub ({type(error).__name__})") from error
    return config
