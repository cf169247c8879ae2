"""Close an iteration: choose among its epochs, publish the policy, decide, and let go of what is not needed."""

from __future__ import annotations

import logging
from typing import Any

from spin_components.attempt_settings import SelectionSettings
from spin_components.checkpoint.selection import decide, to_prune
from spin_components.execution import STOPPED, step
from spin_components.report.refresh import refresh
from spin_components.settings import Settings
from spin_components.store import layout
from spin_components.store.digests import digest_of
from spin_components.store.manifests import Manifest, finished, read_manifest
from spin_components.store.models import fetch_model, model_files
from spin_components.store.run import RunStore
from spin_components.train_epoch.pairs import shard_manifests

logger = logging.getLogger(__name__)


def publish(
    run_uri: str,
    iteration: int,
    reference_uri: str,
    policy_uri: str,
    max_iterations: int,
    selection: dict[str, Any],
) -> str:
    """Publish an iteration's policy and decide what follows.

    Args:
        run_uri: the run.
        iteration: t.
        reference_uri: what the iteration started from.
        policy_uri: the last epoch's policy, validated; empty when the attempt has stopped.
        max_iterations: of this attempt.
        selection: the attempt's `[selection]`.

    Returns: URI of the next iteration's reference, or empty to stop.
    """
    if policy_uri == STOPPED:
        return STOPPED
    with step("checkpoint", run_uri, iteration=iteration) as current:
        run, settings = current.run, current.settings
        rules = SelectionSettings(**selection)
        max_epochs = settings.spin.max_epochs
        epochs = [read_manifest(run, layout.epoch_manifest(iteration, epoch)) for epoch in range(max_epochs)]
        checks = [read_manifest(run, layout.validation(iteration, epoch)) for epoch in range(max_epochs)]
        inputs = {
            "reference": digest_of(model_files(run, reference_uri)),
            "policies": [
                digest_of(manifest.outputs_below(f"{layout.epoch(iteration, epoch)}/policy"))
                for epoch, manifest in enumerate(epochs)
            ],
            "val_losses": [check.facts["val_loss"] for check in checks],
        }
        key = layout.checkpoint(iteration)
        manifest = finished(run, key, inputs)
        facts = (
            manifest.facts
            if manifest
            else _facts(run, iteration, _choose(checks, rules), epochs, checks, reference_uri, settings)
        )
        losses = _losses(run, iteration, facts["val_loss"])
        steps_left = settings.spin.max_steps < 0 or facts["step"] < settings.spin.max_steps
        decision = decide(losses, rules, max_iterations=max_iterations, steps_left=steps_left)
        facts = {**facts, "decision": decision}
        if manifest is None:
            fetch_model(run, facts["checkpoint_uri"], what="the policy to publish")
            folder = run.key_of(facts["checkpoint_uri"])
            files = {f"{folder}/{name}": file for name, file in model_files(run, facts["checkpoint_uri"]).items()}
            if current.tracking:
                current.tracking.log("iteration", facts["step"], _tracked(facts))
            current.finish(key, inputs=inputs, outputs=files, facts=facts)
        else:
            current.reuse(manifest)
            if manifest.facts != facts:  # the attempt's rules or its max_iterations decide otherwise now
                current.commit(key, manifest.model_copy(update={"facts": facts}))
        best, freed = _point_and_prune(run, iteration, rules, settings)
        current.events.write(
            "published", decision=decision, val_loss=facts["val_loss"], iteration_best=best, freed_bytes=freed
        )
        if manifest is None or decision != "continue":
            refresh(current)
        if decision != "continue":
            run.sweep()
            current.is_last = True
        logger.info("iteration %d: val_loss %.4f (base %.4f): %s", iteration, losses[-1], losses[0], decision)
        return str(facts["checkpoint_uri"]) if decision == "continue" else STOPPED


def _choose(checks: list[Manifest], rules: SelectionSettings) -> int:
    """The epoch whose policy the iteration hands on."""
    if rules.epoch == "last":
        return len(checks) - 1
    return min(range(len(checks)), key=lambda epoch: (checks[epoch].facts["val_loss"], epoch))


def _losses(run: RunStore, iteration: int, val_loss: float) -> list[float]:
    """val_loss of the base model, of each iteration before, and of this one."""
    before = [layout.validation(layout.BASE, 0), *(layout.checkpoint(t) for t in range(iteration))]
    return [float(read_manifest(run, key).facts["val_loss"]) for key in before] + [val_loss]


def _facts(
    run: RunStore,
    iteration: int,
    chosen: int,
    epochs: list[Manifest],
    checks: list[Manifest],
    reference_uri: str,
    settings: Settings,
) -> dict[str, Any]:
    trained, check = epochs[chosen], checks[chosen]
    metrics = trained.facts["metrics"]
    shards = shard_manifests(run, iteration)
    return {
        "iteration": iteration,
        "epoch": chosen,
        "checkpoint_uri": trained.facts["policy_uri"],
        "reference_uri": reference_uri,
        "val_loss": check.facts["val_loss"],
        **{name: metrics.get(name) for name in ("acc", "rewards_actual_mean", "rewards_generated_mean")},
        "num_pairs": trained.facts["num_pairs"],
        "num_dropped": trained.facts["num_dropped"],
        "step": trained.facts["state"]["step"],
        "consumed_samples": trained.facts["state"]["consumed_samples"],
        "ref_policy_kl_penalty": settings.spin.beta(iteration),
        "peak_lr": settings.training.peak_lr(iteration),
        "generation": [generated.facts | {"samples": len(generated.facts["samples"])} for generated, _ in shards],
        "work_s": round(sum(m.duration_s for m in [*epochs, *checks, *(m for pair in shards for m in pair)]), 3),
    }


def _tracked(facts: dict[str, Any]) -> dict[str, float]:
    """An iteration's numbers for trackers, its shards taken together."""
    names = ("iteration", "val_loss", "acc", "num_pairs", "num_dropped", "ref_policy_kl_penalty", "work_s")
    shards = facts["generation"]
    num_answers = sum(shard["num_pairs"] for shard in shards)
    return {name: facts[name] for name in names if facts[name] is not None} | {
        "mean_generated_tokens": sum(shard["mean_generated_tokens"] * shard["num_pairs"] for shard in shards)
        / num_answers,
        "mean_actual_tokens": sum(shard["mean_actual_tokens"] * shard["num_pairs"] for shard in shards) / num_answers,
        "cut_answers_share": sum(shard["finish_reasons"].get("length", 0) for shard in shards) / num_answers,
    }


def _point_and_prune(run: RunStore, iteration: int, rules: SelectionSettings, settings: Settings) -> tuple[int, int]:
    """Move the pointers and delete what is not needed; all of it can be done again without harm.

    Returns: the best iteration, and the bytes that were freed.
    """
    published = [read_manifest(run, layout.checkpoint(t)) for t in range(iteration + 1)]
    best = min(published, key=lambda m: (m.facts["val_loss"], m.facts["iteration"]))
    for key, chosen in ((layout.LATEST, published[-1]), (layout.BEST, best)):
        run.write_json(key, _pointer(chosen))
    return int(best.facts["iteration"]), _prune(run, published, rules, settings)


def _pointer(manifest: Manifest) -> dict[str, Any]:
    facts = manifest.facts
    return {"iteration": facts["iteration"], "uri": facts["checkpoint_uri"], "val_loss": facts["val_loss"]}


def _prune(run: RunStore, published: list[Manifest], rules: SelectionSettings, settings: Settings) -> int:
    """Delete weights beyond `save_top_k`, epochs that were not chosen, and optimizer state nobody can need."""
    losses = {int(m.facts["iteration"]): float(m.facts["val_loss"]) for m in published}
    # an adapter is small, and those of later iterations sit upon it
    dropped = [] if settings.lora.export == "adapter" else to_prune(losses, rules.save_top_k)
    freed = 0
    for manifest in published:
        iteration = int(manifest.facts["iteration"])
        for epoch in range(settings.spin.max_epochs):
            folder = layout.epoch(iteration, epoch)
            freed += run.delete(f"{folder}/trainer")
            if epoch != manifest.facts["epoch"]:
                freed += run.delete(f"{folder}/{layout.ADAPTER}")
            if epoch != manifest.facts["epoch"] or iteration in dropped:
                freed += run.delete(f"{folder}/policy")
    return freed
