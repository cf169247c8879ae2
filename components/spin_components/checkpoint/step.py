"""Close an iteration: choose among its epochs, publish the policy, judge it, and let go of what is not needed."""

from __future__ import annotations

import logging
import math
from typing import Any

from spin_components.attempt_settings import SelectionSettings
from spin_components.checkpoint.comparisons import as_facts, comparer, measured
from spin_components.checkpoint.decisions import goes_on, name_of
from spin_components.checkpoint.pruning import prune
from spin_components.checkpoint.selection import Judgement, judge
from spin_components.data.pair_counts import PairCounts
from spin_components.execution import Step, step
from spin_components.process import STOPPED
from spin_components.report.refresh import refresh
from spin_components.settings import Settings
from spin_components.store import layout
from spin_components.store.digests import digest_of
from spin_components.store.manifests import Manifest, finished, read_manifest
from spin_components.store.models import fetch_model, model_files, validated_place
from spin_components.store.run import RunStore
from spin_components.train_epoch.pairs import shard_manifests

logger = logging.getLogger(__name__)

_HELD_OUT = ("spin_margin", "spin_acc", "length_ratio", "repetition_rate", "distinct_1", "distinct_2", "cut_share")
"""Figures of the validation that an iteration's manifest repeats."""


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
        num_epochs = settings.spin.epochs(iteration)
        epochs = [read_manifest(run, layout.epoch_manifest(iteration, epoch)) for epoch in range(num_epochs)]
        checks = [read_manifest(run, layout.validation(iteration, epoch)) for epoch in range(num_epochs)]
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
        judged, verdict = _judge(run, facts, rules, max_iterations, settings)
        judgement, facts = judged[-1], {**facts, **verdict}
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
        freed = _point_and_prune(run, judged, rules, settings)
        _tell(current, judgement, facts["val_loss"], freed)
        if manifest is None or not goes_on(judgement.decision):
            refresh(current)
        if judgement.next is None:
            if not current.evaluation.is_on:  # an evaluation may be writing, and ends the attempt
                run.sweep()
                current.is_last = True
            return STOPPED
        return str(_pointer(run, judgement.next)["uri"])


def _choose(checks: list[Manifest], rules: SelectionSettings) -> int:
    """The epoch whose policy the iteration hands on."""
    if rules.epoch == "last":
        return len(checks) - 1
    losses = [math.inf if check.facts["val_loss"] is None else check.facts["val_loss"] for check in checks]
    return min(range(len(checks)), key=lambda epoch: (losses[epoch], epoch))


def _judge(
    run: RunStore, facts: dict[str, Any], rules: SelectionSettings, max_iterations: int, settings: Settings
) -> tuple[list[Judgement], dict[str, Any]]:
    """Judge every iteration up to this one anew: the attempt's rules may be others than those before.

    Returns: the judgements, and what this iteration's manifest says of its own.
    """
    iteration = int(facts["iteration"])
    epochs = {t: int(read_manifest(run, layout.checkpoint(t)).facts["epoch"]) for t in range(iteration)}
    epochs[iteration] = int(facts["epoch"])
    compare = comparer(run, epochs, rules.confidence)
    judged = judge(
        measured(run, epochs),
        compare,
        rules,
        max_iterations=max_iterations,
        steps_left=settings.spin.max_steps < 0 or facts["step"] < settings.spin.max_steps,
    )
    mine, (reference, _) = judged[-1], validated_place(run, facts["reference_uri"])
    return judged, {
        **{name: getattr(mine, name) for name in ("outcome", "reason", "decision", "best", "next")},
        "confidence": rules.confidence,
        "from_base": as_facts(compare(layout.BASE, iteration), layout.BASE),
        "from_reference": as_facts(compare(reference, iteration), reference),
        "from_best": as_facts(mine.change, mine.against),
    }


def _tell(current: Step, found: Judgement, val_loss: float | None, freed: int) -> None:
    """Say what an iteration came to, as an event and in the log; loudly where it regressed."""
    told = {name: getattr(found, name) for name in ("decision", "outcome", "reason", "next")}
    current.events.write("published", **told, val_loss=val_loss, iteration_best=found.best, freed_bytes=freed)
    message = f"iteration {found.iteration}: {found.outcome}, {found.reason}"
    if found.outcome == "regressed":
        end = f"the run ends; the best is {name_of(found.best)}"
        message += f"; {end if found.next is None else f'the next iteration begins from {name_of(found.next)}'}"
        current.events.write("warning", message=message)
        logger.warning(message)
    else:
        logger.info("%s; the best is %s: %s", message, name_of(found.best), found.decision)


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
        **{name: check.facts[name] for name in _HELD_OUT if name in check.facts},
        **PairCounts.model_validate(trained.facts).model_dump(mode="json"),
        "step": trained.facts["state"]["step"],
        "consumed_samples": trained.facts["state"]["consumed_samples"],
        "ref_policy_kl_penalty": settings.spin.beta(iteration),
        "peak_lr": settings.training.peak_lr(iteration),
        "generation": [generated.facts | {"samples": len(generated.facts["samples"])} for generated, _ in shards],
        "work_s": round(sum(m.duration_s for m in [*epochs, *checks, *(m for pair in shards for m in pair)]), 3),
    }


def _tracked(facts: dict[str, Any]) -> dict[str, float]:
    """An iteration's numbers for trackers, its shards taken together."""
    counts = ("num_pairs", "num_history", "num_dropped")
    names = ("iteration", "val_loss", *_HELD_OUT, "acc", *counts, "ref_policy_kl_penalty", "work_s")
    shards = facts["generation"]
    num_answers = sum(shard["num_pairs"] for shard in shards)
    return {name: facts[name] for name in names if facts.get(name) is not None} | {
        "mean_generated_tokens": sum(shard["mean_generated_tokens"] * shard["num_pairs"] for shard in shards)
        / num_answers,
        "mean_actual_tokens": sum(shard["mean_actual_tokens"] * shard["num_pairs"] for shard in shards) / num_answers,
        "cut_answers_share": sum(shard["finish_reasons"].get("length", 0) for shard in shards) / num_answers,
    }


def _point_and_prune(run: RunStore, judged: list[Judgement], rules: SelectionSettings, settings: Settings) -> int:
    """Move the pointers and delete what is not needed; all of it can be done again without harm.

    Returns: the bytes that were freed.
    """
    run.write_json(layout.LATEST, _pointer(run, judged[-1].iteration))
    run.write_json(layout.BEST, _pointer(run, judged[-1].best))
    regressed = [found.iteration for found in judged if found.outcome == "regressed"]
    return prune(run, len(judged), regressed, rules, settings)


def _pointer(run: RunStore, iteration: int) -> dict[str, Any]:
    """Where an iteration's policy lies, or the base model."""
    if iteration == layout.BASE:
        facts = read_manifest(run, layout.validation(layout.BASE, 0)).facts
        uri = run.read_json(layout.RUN)["base_model"]["uri"]
    else:
        facts = read_manifest(run, layout.checkpoint(iteration)).facts
        uri = facts["checkpoint_uri"]
    return {"iteration": iteration, "uri": uri, "val_loss": facts["val_loss"]}
