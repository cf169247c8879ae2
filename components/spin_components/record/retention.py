"""Deletes weights beyond `save_top_k`, epochs that were not chosen, and optimizer state that nothing resumes from."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from spin_components.record.decisions import REJECTED
from spin_components.record.pointers import read_pointer
from spin_components.settings.attempt import EvaluationSettings
from spin_components.settings.selection import SelectionSettings
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import read_manifest


def to_prune(losses: Mapping[int, float | None], save_top_k: int, rejected: Collection[int] = ()) -> list[int]:
    """Iterations whose weights are deleted: neither among the best `save_top_k` nor the last.

    Args:
        losses: val_loss by iteration.
        save_top_k: how many to keep, at least one; -1 for all.
        rejected: iterations that rank behind all others.
    """
    if save_top_k < 0:
        return []

    def rank(iteration: int) -> tuple[bool, float, int]:
        loss = losses[iteration]
        return iteration in rejected, math.inf if loss is None else loss, iteration

    kept = {*sorted(losses, key=rank)[: max(save_top_k, 1)], max(losses)}
    return sorted(iteration for iteration in losses if iteration not in kept)


def prune(
    run: RunStore, num_published: int, rejected: Collection[int], rules: SelectionSettings, settings: Settings
) -> int:
    """Delete what is not needed; repeating it does no harm.

    Weights that an evaluation still needs stay until it is done.

    Args:
        run: the run.
        num_published: iterations that are published.
        rejected: those of them that regressed or drifted.
        rules: the attempt's `[selection]`.
        settings: of the run.

    Returns: the bytes that were freed.
    """
    published = [read_manifest(run, layout.checkpoint(t)) for t in range(num_published)]
    carried = _carried(run, settings)
    losses = {int(m.facts["iteration"]): m.facts["val_loss"] for m in published}
    # adapters are small, and those of later iterations build on them
    dropped = [] if settings.lora.export == "adapter" else to_prune(losses, rules.save_top_k, rejected)
    best = int(read_pointer(run, layout.BEST)["iteration"])  # perhaps not by val_loss
    dropped = [iteration for iteration in dropped if iteration != best]
    awaited = _awaited(run, dropped)
    freed = 0
    for manifest in published:
        iteration = int(manifest.facts["iteration"])
        for epoch in range(settings.spin.epochs(iteration)):
            folder = layout.epoch(iteration, epoch)
            if folder not in carried:
                freed += run.delete(f"{folder}/trainer")
            if epoch != manifest.facts["epoch"]:
                freed += run.delete(f"{folder}/{layout.ADAPTER}")
            if epoch != manifest.facts["epoch"] or (iteration in dropped and iteration not in awaited):
                freed += run.delete(f"{folder}/policy")
    return freed


def prune_evaluated(run: RunStore, settings: Settings) -> None:
    """Delete weights that were kept for evaluations that are done now."""
    keys = run.list("iterations", "*/checkpoint.json")
    rejected = [
        int(manifest.facts["iteration"])
        for manifest in (read_manifest(run, key) for key in keys)
        if manifest.facts["outcome"] in REJECTED
    ]
    rules = SelectionSettings.model_validate(run.read_json(layout.ATTEMPT).get("selection", {}))
    prune(run, len(keys), rejected, rules, settings)


def _awaited(run: RunStore, iterations: Collection[int]) -> set[int]:
    """Iterations that this attempt still has to evaluate."""
    wanted = EvaluationSettings.model_validate(run.read_json(layout.ATTEMPT).get("evaluation", {}))
    if not wanted.tasks:
        return set()
    return {t for t in iterations if not run.exists(layout.evaluation(t))}


def _carried(run: RunStore, settings: Settings) -> set[str]:
    """Folders of epochs whose optimizer state a next iteration may load: those of the last policy and of the best."""
    if settings.spin.reset_optimizer:
        return set()
    keys = [run.key_of(read_pointer(run, pointer)["uri"]) or "" for pointer in (layout.LATEST, layout.BEST)]
    return {key.removesuffix("/policy") for key in keys}
