"""Possible causes of a mismatch between a run and its reproduction, from their records."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from spin_components.record.history import History
from spin_components.store.manifests import Manifest

_NOT_NUMBERS = ("kfp",)
"""Packages that do not affect any number."""
_MACHINE = {
    "processor": "processor",
    "instructions": "vector instructions",
    "threads": "threads",
    "ranks": "training processes",
}


def reasons(old: History, new: History) -> list[str]:
    """Possible causes in words, the likeliest first; "there" is the recorded run, "here" the reproduction."""
    causes = [
        *_template_dates(old, new),
        *_versions(old, new),
        *_machines(old, new),
        *_choices(old, new),
        *_nondeterminism(old, new),
    ]
    if causes:
        return causes
    known = "versions, machine, threads and settings are the same in both records"
    if not _values(_computing(old), lambda manifest: manifest.machine.get("processor")):
        known = "versions and settings are the same; the record is too old to contain the processor and the threads"
    return [f"the records do not explain it: {known}"]


def _template_dates(old: History, new: History) -> list[str]:
    """Difference in the dates that the chat template wrote into the prompts."""
    there, here = (history.data.facts.get("chat_template_date") for history in (old, new))
    if here and not there:
        return ["the chat template renders the date, which the record is too old to contain"]
    return [f"the chat template renders the date: {there} there, {here} here"] if there != here else []


def _versions(old: History, new: History) -> list[str]:
    tables = [
        {"spin-pipelines": record["version"], "Python": record["python"], **record["packages"]}
        for record in (old.record, new.record)
    ]
    names = [name for name in tables[0] if name in tables[1] and name not in _NOT_NUMBERS]
    changed = {name: (tables[0][name], tables[1][name]) for name in names if tables[0][name] != tables[1][name]}
    lines = [f"{name} {there} there, {here} here" for name, (there, here) in changed.items()]
    # run.json has the versions that a run started with; it may have been resumed with others, which each step records
    used = sorted({name for m in _computing(old) for name in m.machine.get("packages", {})} - changed.keys())
    for name in used:
        lines += _apart(name, old, new, partial(_version, name))
    return lines


def _machines(old: History, new: History) -> list[str]:
    lines = _apart("computed on", old, new, _device)
    for name, label in _MACHINE.items():
        lines += _apart(label, old, new, partial(_of_machine, name))
    return lines


def _version(package: str, manifest: Manifest) -> Any:
    return manifest.machine.get("packages", {}).get(package)


def _of_machine(name: str, manifest: Manifest) -> Any:
    return manifest.machine.get(name)


def _device(manifest: Manifest) -> str | None:
    if not manifest.machine:
        return None
    return str(manifest.machine.get("gpu") or "the CPU")


def _choices(old: History, new: History) -> list[str]:
    """Differences in settings that `auto` decided or that may change between attempts."""
    return [
        *_apart("precision", old, new, lambda manifest: manifest.inputs.get("precision")),
        *_apart("sequences", old, new, lambda manifest: manifest.inputs.get("packing")),
        *_apart("answers sampled by", old, new, lambda manifest: manifest.facts.get("engine")),
        *_apart("trained by", old, new, lambda manifest: manifest.facts.get("backend")),
        *_apart("ZeRO stage", old, new, lambda manifest: manifest.facts.get("zero_stage")),
    ]


def _nondeterminism(old: History, new: History) -> list[str]:
    """Sources of different results even on the same machine."""
    manifests = [*_computing(old), *_computing(new)]
    lines = []
    if any(manifest.facts.get("engine") == "vllm" for manifest in manifests):
        lines.append(
            "answers were sampled by vLLM, which has one seed for all of them and whose rounding depends on its "
            "batches: they may differ each time (generation.engine = 'transformers' repeats its answers)"
        )
    if any(manifest.machine.get("num_gpus") for manifest in manifests):
        lines.append("computed on GPUs, some of whose kernels sum in a different order each time")
    if any(manifest.machine.get("ranks", 1) > 1 for manifest in manifests):
        lines.append("trained by several processes; some backends sum their gradients in no fixed order")
    return lines


def _computing(history: History) -> list[Manifest]:
    """Manifests of the steps that used a model."""
    return [manifest for manifest in history.manifests() if manifest.step not in ("prepare", "checkpoint")]


def _values(manifests: Iterable[Manifest], read: Callable[[Manifest], Any]) -> list[str]:
    """Distinct values, in the order of the manifests."""
    return list(dict.fromkeys(str(value) for manifest in manifests if (value := read(manifest)) is not None))


def _apart(label: str, old: History, new: History, read: Callable[[Manifest], Any]) -> list[str]:
    """One line if both records have a value and the values differ; else none."""
    there, here = _values(_computing(old), read), _values(_computing(new), read)
    if not there or not here or set(there) == set(here):
        return []
    return [f"{label}: {', '.join(there)} there, {', '.join(here)} here"]
