"""Why two runs of the same thing may part, as far as their records tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from spin_components.report.history import History
from spin_components.store.manifests import Manifest

_NOT_NUMBERS = ("kfp",)
"""Packages that no number depends on."""
_MACHINE = {
    "processor": "processor",
    "instructions": "vector instructions",
    "threads": "threads",
    "ranks": "training processes",
}


def reasons(old: History, new: History) -> list[str]:
    """Sentences, the likeliest reason first; "there" is the recorded run, "here" the one that was made again."""
    found = [*_versions(old, new), *_machines(old, new), *_means(old, new), *_unsteady(old, new)]
    if found:
        return found
    known = "versions, machine, threads and settings are the same in both records"
    if not _values(_computing(old), lambda manifest: manifest.machine.get("processor")):
        known = "versions and settings are the same; the record is too old to tell the processor and the threads"
    return [f"nothing that is recorded explains it: {known}"]


def _versions(old: History, new: History) -> list[str]:
    tables = [
        {"spin-pipelines": record["version"], "Python": record["python"], **record["packages"]}
        for record in (old.record, new.record)
    ]
    names = [name for name in tables[0] if name in tables[1] and name not in _NOT_NUMBERS]
    found = {name: (tables[0][name], tables[1][name]) for name in names if tables[0][name] != tables[1][name]}
    lines = [f"{name} {there} there, {here} here" for name, (there, here) in found.items()]
    # a run that went on under other versions began with what its record says, and each step tells what it had
    used = sorted({name for m in _computing(old) for name in m.machine.get("packages", {})} - found.keys())
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


def _means(old: History, new: History) -> list[str]:
    """What `auto` came to, and what may change between attempts."""
    return [
        *_apart("precision", old, new, lambda manifest: manifest.inputs.get("precision")),
        *_apart("sequences", old, new, lambda manifest: manifest.inputs.get("packing")),
        *_apart("answers sampled by", old, new, lambda manifest: manifest.facts.get("engine")),
        *_apart("trained by", old, new, lambda manifest: manifest.facts.get("backend")),
        *_apart("ZeRO stage", old, new, lambda manifest: manifest.facts.get("zero_stage")),
    ]


def _unsteady(old: History, new: History) -> list[str]:
    """What need not give the same twice even on one machine."""
    manifests = [*_computing(old), *_computing(new)]
    lines = []
    if any(manifest.facts.get("engine") == "vllm" for manifest in manifests):
        lines.append(
            "answers were sampled by vLLM, which has one seed for all of them and rounds by how it happens to batch "
            "them: they need not repeat (generation.engine = 'transformers' gives the same answers again)"
        )
    if any(manifest.machine.get("num_gpus") for manifest in manifests):
        lines.append("computed on GPUs, some of whose kernels add in another order each time")
    if any(manifest.machine.get("ranks", 1) > 1 for manifest in manifests):
        lines.append("trained by several processes, whose gradients are summed in no fixed order on some backends")
    return lines


def _computing(history: History) -> list[Manifest]:
    """Manifests of the steps that worked with a model."""
    return [manifest for manifest in history.manifests() if manifest.step not in ("prepare", "checkpoint")]


def _values(manifests: Iterable[Manifest], read: Callable[[Manifest], Any]) -> list[str]:
    """Each value once, in the order it comes."""
    return list(dict.fromkeys(str(value) for manifest in manifests if (value := read(manifest)) is not None))


def _apart(label: str, old: History, new: History, read: Callable[[Manifest], Any]) -> list[str]:
    """A line where both records tell something, and not the same."""
    there, here = _values(_computing(old), read), _values(_computing(new), read)
    if not there or not here or set(there) == set(here):
        return []
    return [f"{label}: {', '.join(there)} there, {', '.join(here)} here"]
