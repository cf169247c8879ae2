"""Pointers: the manifest of the newest checkpoint decides where a pointer is out of date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spin_components.record.pointers import pointer_to, read_pointer
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import Manifest


def published(root: Path, *best: int | None) -> LocalRun:
    """A run whose iterations name these as the best; both pointers are of the first iteration."""
    run = LocalRun(root)
    for iteration, name in enumerate(best):
        facts: dict[str, Any] = {"checkpoint_uri": f"s3://b/{iteration}", "val_loss": 2.0 - iteration}
        facts |= {} if name is None else {"best": name}
        manifest = Manifest(step="checkpoint", inputs={}, facts=facts)
        run.write_json(layout.checkpoint(iteration), manifest.model_dump(mode="json"))
    for key in (layout.BEST, layout.LATEST):
        run.write_json(key, pointer_to(run, 0))
    return run


def test_a_pointer_that_arrived_late_is_not_believed(tmp_path: Path) -> None:
    run = published(tmp_path, 0, 1)
    newest = {"iteration": 1, "uri": "s3://b/1", "val_loss": 1.0}
    assert read_pointer(run, layout.BEST) == newest
    assert read_pointer(run, layout.LATEST) == newest


def test_the_best_may_be_an_earlier_iteration(tmp_path: Path) -> None:
    run = published(tmp_path, 0, 0)
    assert read_pointer(run, layout.BEST) == {"iteration": 0, "uri": "s3://b/0", "val_loss": 2.0}
    assert read_pointer(run, layout.LATEST)["iteration"] == 1


def test_the_pointer_counts_where_no_manifest_names_a_best(tmp_path: Path) -> None:
    assert read_pointer(published(tmp_path, 0, None), layout.BEST)["iteration"] == 0
