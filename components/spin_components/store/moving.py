"""Addresses within a run: stored relative to it, and read as addresses below where the run lies now.

So a run may be copied to another bucket, renamed, or seen through another mount. Older runs hold whole addresses; those
below the address that `run.json` says the run began at are read as lying below where it is now.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spin_components.errors import ConfigError
from spin_components.store.addresses import parse_address, scheme_of

_NAMES = ("uri", "policy_uri", "checkpoint_uri", "reference_uri")
"""Names of values that are addresses, in manifests, pointers and `run.json`."""

_VERBATIM = ("settings", "inputs")
"""Tables that stay as they were given, and which finished steps are compared by."""


def each_address(value: Any, change: Callable[[str], str]) -> Any:
    """Copy JSON with a function applied to every address in it, except settings and inputs."""
    if isinstance(value, dict):
        return {
            name: change(item)
            if name in _NAMES and isinstance(item, str)
            else item
            if name in _VERBATIM
            else each_address(item, change)
            for name, item in value.items()
        }
    return [each_address(item, change) for item in value] if isinstance(value, list) else value


def relative(uri: str, root: str) -> str:
    """Return an address below a run as its key; any other address unchanged."""
    key = uri.removeprefix(f"{root}/") if uri.startswith(f"{root}/") else ""
    return uri if is_absolute(key) or not key else key


def is_absolute(uri: str) -> bool:
    """Whether an address is more than a key of a run."""
    return uri.startswith("/") or "://" in uri


def elsewhere(record: object, root: str) -> tuple[str, dict[str, str]]:
    """Read from a `run.json` where things lay before.

    Args:
        record: content of `run.json`.
        root: address of the run now.

    Returns: the address at which the run began, empty if that is `root`; and the base model's present address by each
        of its earlier ones.
    """
    began = _began_at(record)
    moved: dict[str, str] = {}
    match record:
        case {"base_model": {"uri": str(uri), "former_uris": list(former)}}:
            moved = {each: uri for each in former if isinstance(each, str)}
    return "" if began == root else began, moved


def _began_at(record: object) -> str:
    """Return the address that a run had when it began, from its `run.json`; empty if that does not say."""
    match record:
        case {"settings": {"run": {"uri": str(uri)}}} if is_absolute(uri) and scheme_of(uri) in ("file", "s3"):
            try:
                return str(parse_address(uri, what="run.uri"))
            except ConfigError:
                return ""
    return ""
