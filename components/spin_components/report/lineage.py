"""Provenance, cost and settings of a run, as tables of names and values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from spin_components.record.history import History
from spin_components.settings.settings import Settings
from spin_components.store.digests import FileDigest, digest_of
from spin_components.store.manifests import Manifest

Facts = list[tuple[str, str]]


def origins(history: History) -> Facts:
    """Return base model, data, seed and versions."""
    record, data = history.record, history.data.facts
    forked = history.settings["model"].get("forked_from")
    return [
        ("run", history.uri),
        ("started", _date(record["created_at"])),
        ("base model", _named(history.settings["model"]["base"], record["base_model"]["uri"])),
        ("base model, SHA-256", _digest(record["base_model"]["files"])),
        *([("forked from", forked)] if forked else []),
        *((f"{name} data", _named(history.settings["data"][name], s["uri"])) for name, s in record["data"].items()),
        *((f"{name} data, SHA-256", _digest(source["files"])) for name, source in record["data"].items()),
        ("prompts", f"{data['num_train']:,} for training, {data['num_validation']:,} held out"),
        *sampler_facts(history),
        ("seed", str(record["seed"])),
        ("versions", ", ".join(f"{name} {version}" for name, version in _versions(record).items())),
    ]


def sampler_facts(history: History) -> Facts:
    """Return the largest difference between the log-probabilities of the sampler and of the reference."""
    differences = [known for iteration in history.iterations if (known := iteration.sampler_difference)]
    if not differences:
        return []
    difference, tolerance = max(differences)
    text = f"differ by {difference:.1e} nats per token, tolerance {tolerance:g}"
    num = len(differences)
    return [("sampler and reference", f"{text}; maximum of {num} iterations" if num > 1 else text)]


def _named(setting: str, uri: str) -> str:
    """An address, preceded by the value of its setting if that differs."""
    return uri if setting == uri else f"{setting}, as {uri}"


def _versions(record: dict[str, Any]) -> dict[str, str]:
    return {"spin-pipelines": record["version"], "Python": record["python"], **record["packages"]}


def _digest(files: dict[str, Any]) -> str:
    """SHA-256 of a set of files; of a single file, that of its content."""
    digests = {name: FileDigest.model_validate(file) for name, file in files.items()}
    return next(iter(digests.values())).sha256 if len(digests) == 1 else digest_of(digests)


def costs(history: History, num_answer_tokens: int) -> Facts:
    """Return compute time, tokens, core-hours and GPU-hours of the finished steps.

    Args:
        history: manifests of the run.
        num_answer_tokens: number of tokens of both answers of the trained pairs, summed over epochs.
    """
    manifests = list(history.manifests())
    generated = sum(
        round(shard.facts["mean_generated_tokens"] * shard.facts["num_pairs"])
        for iteration in history.iterations
        for shard, _ in iteration.shards
    )
    gpu_hours = sum(m.duration_s * m.machine.get("num_gpus", 0) for m in manifests) / 3600
    core_hours = sum(m.duration_s * m.machine.get("num_cores", 0) for m in manifests if not m.machine.get("num_gpus"))
    gpus = sorted({m.machine["gpu"] for m in manifests if m.machine.get("gpu")})
    return [
        ("compute time", duration(total_s(manifests))),
        *([("GPU-hours", f"{gpu_hours:.2f} ({', '.join(gpus)})")] if gpu_hours else []),
        *([("core-hours", f"{core_hours / 3600:.2f}")] if core_hours else []),
        ("tokens generated", f"{generated:,}"),
        ("answer tokens trained on", f"{num_answer_tokens:,}"),
        *((f"time in {name}", duration(seconds)) for name, seconds in _by_step(manifests).items()),
    ]


def total_s(manifests: Iterable[Manifest]) -> float:
    """Return the total duration of steps, seconds."""
    return sum(manifest.duration_s for manifest in manifests)


def _by_step(manifests: list[Manifest]) -> dict[str, float]:
    """Total duration, seconds, by step."""
    totals: dict[str, float] = {}
    for manifest in manifests:
        totals[manifest.step] = totals.get(manifest.step, 0.0) + manifest.duration_s
    return totals


def duration(seconds: float) -> str:
    """Format seconds in their two largest units, e.g. `2 h 30 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if minutes < 60:
        return f"{int(minutes)} min {int(seconds % 60)} s"
    return f"{int(hours)} h {int(minutes % 60)} min" if hours < 24 else f"{int(days)} d {int(hours % 24)} h"


def settings_tables(history: History) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """Return each section's settings as name, value, and whether the value differs from the default."""
    tables = []
    for section, table in history.settings.items():
        fields = _defaults(section)
        changed = {name for name, value in table.items() if name in fields and _plain(fields[name]) != _plain(value)}
        rows = [(name, _plain(value), name in changed) for name, value in table.items()]
        tables.append((section, rows))
    return tables


def _defaults(section: str) -> dict[str, Any]:
    """Defaults of a section as JSON values, without required settings."""
    kind: Any = Settings.model_fields[section].annotation if section in Settings.model_fields else None
    if kind is None:
        return {}
    required = {name: "-" for name, field in kind.model_fields.items() if field.is_required()}
    dumped = kind.model_validate(required).model_dump(mode="json")
    return {name: value for name, value in dumped.items() if name not in required}


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _date(text: str) -> str:
    """An ISO 8601 time to the minute."""
    return f"{text[:10]} {text[11:16]} UTC"
