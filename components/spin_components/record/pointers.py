"""Pointers `best.json` and `latest.json`: the number and the address of an iteration's policy, or of the base model."""

from __future__ import annotations

from typing import Any

from spin_components.record.decisions import goes_on
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import read_manifest


def pointer_to(run: RunStore, iteration: int) -> dict[str, Any]:
    """Return the content of a pointer to an iteration's policy, or to the base model."""
    if iteration == layout.BASE:
        facts = read_manifest(run, layout.validation(layout.BASE, 0)).facts
        uri = run.read_json(layout.RUN)["base_model"]["uri"]
    elif iteration == layout.WARM_UP:
        warmed = read_manifest(run, layout.WARM_UP_MANIFEST).facts
        facts = read_manifest(run, layout.validation(iteration, int(warmed["epoch"]))).facts
        uri = warmed["policy_uri"]
    else:
        facts = read_manifest(run, layout.checkpoint(iteration)).facts
        uri = facts["checkpoint_uri"]
    return {"iteration": iteration, "uri": uri, "val_loss": facts["val_loss"]}


def is_over(run: RunStore) -> bool:
    """Whether the last iteration is published; another step that is still running then takes the lease again."""
    last = max((int(key.split("/")[1]) for key in run.list("iterations", "*/checkpoint.json")), default=None)
    return last is not None and not goes_on(str(read_manifest(run, layout.checkpoint(last)).facts["decision"]))


def read_pointer(run: RunStore, key: str) -> dict[str, Any]:
    """Read a pointer; the manifest of the newest checkpoint decides where it names another iteration.

    A pointer names another one where its write was interrupted, or where the write of an older attempt reached object
    storage late.

    Args:
        run: the run.
        key: `layout.BEST` or `layout.LATEST`.

    Raises:
        IntegrityError: the pointer or the manifest is missing or damaged.
    """
    pointer = run.read_json(key)
    names = (name.split("/")[1] for name in run.list("iterations", "*/checkpoint.json"))
    published = [int(name) for name in names if layout.is_number(name)]
    if not published or type(pointer.get("iteration")) is not int:
        return pointer
    newest = max(published)
    iteration = newest if key == layout.LATEST else read_manifest(run, layout.checkpoint(newest)).facts.get("best")
    return pointer if iteration in (None, pointer["iteration"]) else pointer_to(run, iteration)
