"""Damages stored or cached files of a run."""

from __future__ import annotations

import json
from pathlib import Path

from faults.harms import flip
from faults.plans import DAMAGE, Fault
from spin_components.store.base import RunStore


def damage(run: RunStore, fault: Fault) -> None:
    """Damage an object as the fault says."""
    content = run.read(fault.where)
    assert content is not None, f"{fault.where} does not exist"
    if fault.kind == "delete":
        run.delete(fault.where)
    else:
        run.write(fault.where, _damaged(content, fault))


def _damaged(content: bytes, fault: Fault) -> bytes:
    match fault.kind:
        case "flip" if fault.mark:
            mark = fault.mark.encode()
            return flip(content, content.index(mark) + len(mark))
        case "flip":
            return flip(content, fault.skip % max(len(content), 1))
        case "truncate":
            return content[: len(content) // 2]
        case _:
            return json.dumps({"step": "none"}).encode() if fault.where.endswith(".json") else b"nothing of use"


def damage_cache(cache: Path) -> None:
    """Flip a bit of every file in a cache, and truncate its records of the storage's tags."""
    files = [path for path in cache.glob("files/*/*") if path.stat().st_size]
    assert files, "the cache is empty"
    for path in files:
        path.chmod(0o644)
        path.write_bytes(flip(path.read_bytes(), path.stat().st_size // 2))
    for path in cache.glob("tags/*"):
        path.write_text('{"num_bytes":', encoding="utf-8")


def is_the_damage(difference: str, fault: Fault) -> bool:
    """Whether a difference between two results is the damage itself, to an object that no later step reads."""
    where = fault.where
    unread = (f"{where} is not what its manifest says", f"{where} is missing")
    return fault.kind in DAMAGE and (difference in unread or difference.startswith(f"losses: {where} is []"))
