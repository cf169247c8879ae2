"""The base model and the data of a run at another address: the same files are the same input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spin_components.store import layout
from spin_components.store.base import RunStore

_ADDRESSES = {
    "model.base (content)": ("model.base", "model.forked_from"),
    "data.train (content)": ("data.train",),
    "data.validation (content)": ("data.validation",),
}
"""Settings that are addresses, by the input that holds the digest of their files."""


def kept_addresses(before: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recorded values of addresses whose files have not changed.

    Args:
        before: inputs of the run as it began.
        inputs: those of this attempt.
    """
    return {
        name: before[name]
        for content, names in _ADDRESSES.items()
        if content in before and before[content] == inputs.get(content)
        for name in names
        if name in before and name in inputs
    }


def record_addresses(run: RunStore, base: str, data: Mapping[str, str]) -> None:
    """Write to `run.json` where the base model and the data are now, if that is elsewhere.

    Earlier addresses of the base model are kept, since manifests and adapters name it by them.

    Args:
        run: the run.
        base: address of the base model.
        data: addresses of the data, by setting.
    """
    record = run.read_json(layout.RUN)
    model, changed = record["base_model"], False
    if model["uri"] != base:
        former = [uri for uri in (*model.get("former_uris", ()), model["uri"]) if uri != base]
        record["base_model"], changed = {**model, "uri": base, "former_uris": former}, True
    for name, uri in data.items():
        if name in record["data"] and record["data"][name]["uri"] != uri:
            record["data"][name], changed = {**record["data"][name], "uri": uri}, True
    if changed:
        run.write_json(layout.RUN, record)
