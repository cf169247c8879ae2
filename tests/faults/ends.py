"""The result of a run in storage, and its comparison with another run's."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.bucket import Bucket
from spin_components.store.manifests import read_manifest
from support.s3_server import BUCKET

_OF_THE_PROCESS = ("metrics.json", "rng.safetensors")
_CHECKPOINT_FACTS = ("iteration", "epoch", "val_loss", "step", "consumed_samples", "num_pairs", "decision")


@dataclass(frozen=True, slots=True)
class End:
    """The result of a run; two runs with the same settings must have equal results.

    Attributes:
        losses: loss of every training step, by key of the epoch's metrics.
        val_losses: val_loss by key of the manifest.
        digests: SHA-256 of every output in a manifest, except metrics, which contain times, and random state,
            which no step uses and which depends on the steps that the process ran before.
        checkpoints: facts of each checkpoint.
        keys: all stored keys except events, and what says who may write.
        damage: stored outputs that do not match their manifest.
    """

    losses: dict[str, list[float]] = field(default_factory=dict)
    val_losses: dict[str, float] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    checkpoints: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()
    damage: tuple[str, ...] = ()

    def differences(self, other: End) -> list[str]:
        """One line for each difference from another result, or damage in this one."""
        lines = [f"{key} is not what its manifest says" for key in self.damage]
        lines += [f"{key} is stored, but not by the undisturbed run" for key in sorted(self.keys - other.keys)]
        lines += [f"{key} is missing" for key in sorted(other.keys - self.keys)]
        for name in ("losses", "val_losses", "digests", "checkpoints"):
            mine, others = getattr(self, name), getattr(other, name)
            lines += [
                f"{name}: {key} is {mine.get(key)}, undisturbed {others.get(key)}"
                for key in sorted(mine.keys() | others.keys())
                if mine.get(key) != others.get(key)
            ]
        return lines


def read_end(run: RunStore) -> End:
    """Read the result of a finished run, and compare all stored outputs with their manifests."""
    passing = (f"{layout.EVENTS}/", f"{layout.LEASES}/")
    keys = frozenset(key for key in run.sizes("") if not key.startswith(passing))
    losses, val_losses, digests, checkpoints, damage = {}, {}, {}, {}, []
    for key in sorted(keys):
        if key.endswith("/metrics.json") and "/trainer/" not in key:
            losses[key] = read_losses(run, key)
        if not _is_manifest(key):
            continue
        manifest = read_manifest(run, key)
        if key.endswith("validation.json"):
            val_losses[key] = manifest.facts["val_loss"]
        if key.endswith("checkpoint.json"):
            checkpoints[key] = {name: manifest.facts[name] for name in _CHECKPOINT_FACTS}
        for output, expected in manifest.outputs.items():
            if output.rpartition("/")[2] not in _OF_THE_PROCESS:
                digests[output] = expected.sha256
            if output in keys and hashlib.sha256(run.read(output) or b"").hexdigest() != expected.sha256:
                damage.append(output)
    for key in (layout.BEST, layout.LATEST):
        checkpoints[key] = run.read_json(key)
    return End(losses, val_losses, digests, checkpoints, keys, tuple(damage))


def read_losses(run: RunStore, key: str) -> list[float]:
    """The loss of every step that an epoch's metrics hold; none where they cannot be read."""
    try:
        return [row["loss"] for row in json.loads(run.read(key) or b"")["steps"]]
    except (ValueError, LookupError, TypeError):
        return []


def leftovers(cache: Path, prefix: str = "") -> list[str]:
    """Leftovers of killed writers: unfinished uploads below a prefix, temporary files and cache views."""
    remaining = [f"unfinished upload of {key}" for key, _ in Bucket(BUCKET).uploads(prefix)] if prefix else []
    remaining += [f"temporary file: {path}" for path in sorted(cache.rglob("*.part"))]
    remaining += [f"unused cache view: {path}" for path in sorted((cache / "views").glob("*"))]
    return remaining


def _is_manifest(key: str) -> bool:
    name = key.rpartition("/")[2]
    if name in ("manifest.json", "validation.json", "checkpoint.json"):
        return True
    return key.startswith("iterations/") and name[:5].isdigit() and name.endswith(".json")
