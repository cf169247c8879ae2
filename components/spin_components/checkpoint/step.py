"""Close an iteration: choose among its epochs, publish the policy, judge it, and delete what is not needed."""

from __future__ import annotations

import logging
from typing import Any

from spin_components.checkpoint.comparisons import as_facts, change_finder, comparer, measured
from spin_components.checkpoint.selection import Assessment, assess
from spin_components.data.pair_counts import PairCounts
from spin_components.model.stored import fetch_model, model_files, validated_epoch
from spin_components.record.choice import choose_epoch
from spin_components.record.decisions import REJECTED, goes_on, name_of, word_of
from spin_components.record.pairs import shard_manifests
from spin_components.record.pointers import pointer_to
from spin_components.record.retention import prune
from spin_components.report.page import refresh
from spin_components.runtime.process import STOPPED
from spin_components.runtime.step import Step
from spin_components.settings.selection import SelectionSettings
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.digests import FileDigest, digest_of
from spin_components.store.manifests import Manifest, read_manifest

logger = logging.getLogger(__name__)

_ANSWERS = ("length_ratio", "repetition_rate", "distinct_1", "distinct_2", "ended_share", "chrf", "match")
_HELD_OUT = ("spin_margin", "spin_acc", "cut_share", *_ANSWERS, *(f"greedy_{name}" for name in _ANSWERS))
"""Statistics of the validation that an iteration's manifest repeats."""


def publish(
    run_uri: str,
    iteration: int,
    reference_uri: str,
    policy_uri: str,
    max_iterations: int | None = None,
    selection: dict[str, Any] | None = None,
) -> str:
    """Publish an iteration's policy and decide what follows.

    Args:
        run_uri: the run.
        iteration: t.
        reference_uri: the reference of the iteration.
        policy_uri: the last epoch's policy, validated; empty when the attempt has stopped.
        max_iterations: None for what `prepare` recorded for the attempt.
        selection: `[selection]`; None as above.

    Returns: URI of the next iteration's reference, or empty to stop.
    """
    with Step.begin("checkpoint", run_uri, after=[policy_uri], iteration=iteration) as step:
        key = layout.checkpoint(iteration)
        is_new = step.is_due(key, lambda: _inputs(step, iteration, reference_uri), is_timed=False)
        if step.is_stopped:
            return STOPPED
        rules = step.selection if selection is None else SelectionSettings(**selection)
        limit = step.max_iterations if max_iterations is None else max_iterations
        facts = step.published.facts if step.published else _facts(step, iteration, reference_uri, rules)
        judged, verdict = _assess(step, facts, rules, limit)
        facts = {**facts, **verdict}
        if step.published is None:
            step.track("iteration", facts["step"], _tracked(facts))
            step.publish(facts, outputs=_policy_files(step.run, facts["checkpoint_uri"]))
        elif step.published.facts != facts:  # the attempt's rules or its max_iterations decide otherwise now
            step.commit(key, step.published.model_copy(update={"facts": facts}))
        judgement = judged[-1]
        freed = _point_and_prune(step, judged, rules)
        _report(step, judgement, facts["val_loss"], freed)
        if is_new or not goes_on(judgement.decision):
            refresh(step.run, step.warn)
        if judgement.next is not None:
            return str(pointer_to(step.run, judgement.next)["uri"])
        is_evaluated_beside = step.evaluation.is_on and not rules.waits_for_evaluation
        if not (is_evaluated_beside or step.control.sft):  # they may be writing, and end the attempt
            step.run.sweep()
            step.is_last = True
        return STOPPED


def _inputs(step: Step, iteration: int, reference_uri: str) -> dict[str, Any]:
    """What the published policy depends on."""
    epochs, validations = _epochs(step, iteration)
    return {
        "reference": digest_of(model_files(step.run, reference_uri)),
        "policies": [
            digest_of(manifest.outputs_below(f"{layout.epoch(iteration, epoch)}/policy"))
            for epoch, manifest in enumerate(epochs)
        ],
        "val_losses": [validation.facts["val_loss"] for validation in validations],
    }


def _epochs(step: Step, iteration: int) -> tuple[list[Manifest], list[Manifest]]:
    """Manifests of the iteration's epochs and of their validations."""
    numbers = range(step.settings.spin.epochs(iteration))
    return (
        [read_manifest(step.run, layout.epoch_manifest(iteration, epoch)) for epoch in numbers],
        [read_manifest(step.run, layout.validation(iteration, epoch)) for epoch in numbers],
    )


def _facts(step: Step, iteration: int, reference_uri: str, rules: SelectionSettings) -> dict[str, Any]:
    """Facts of the iteration's manifest, without the judgement."""
    settings, shards = step.settings, shard_manifests(step.run, iteration)
    epochs, validations = _epochs(step, iteration)
    epoch = choose_epoch(validations, rules.epoch)
    trained, validation = epochs[epoch].facts, validations[epoch].facts
    return {
        "iteration": iteration,
        "epoch": epoch,
        "checkpoint_uri": trained["policy_uri"],
        "reference_uri": reference_uri,
        "val_loss": validation["val_loss"],
        **{name: trained["metrics"].get(name) for name in ("acc", "rewards_actual_mean", "rewards_generated_mean")},
        **{name: validation[name] for name in _HELD_OUT if name in validation},
        **PairCounts.model_validate(trained).model_dump(mode="json"),
        "step": trained["state"]["step"],
        "consumed_samples": trained["state"]["consumed_samples"],
        "ref_policy_kl_penalty": settings.spin.beta(iteration),
        "peak_lr": settings.training.peak_lr(iteration),
        "generation": [generated.facts | {"samples": len(generated.facts["samples"])} for generated, _ in shards],
        "work_s": round(sum(m.duration_s for m in [*epochs, *validations, *(m for pair in shards for m in pair)]), 3),
    }


def _assess(
    step: Step, facts: dict[str, Any], rules: SelectionSettings, max_iterations: int
) -> tuple[list[Assessment], dict[str, Any]]:
    """Judge every iteration up to this one again, since the attempt's rules may have changed.

    Returns: the judgements, and the facts of this iteration's own.
    """
    run, iteration, max_steps = step.run, int(facts["iteration"]), step.settings.spin.max_steps
    epochs = {t: int(read_manifest(run, layout.checkpoint(t)).facts["epoch"]) for t in range(iteration)}
    epochs[iteration] = int(facts["epoch"])
    uris = {t: read_manifest(run, layout.checkpoint(t)).facts["reference_uri"] for t in range(iteration)}
    uris[iteration] = facts["reference_uri"]
    references = {t: validated_epoch(run, uri)[0] for t, uri in uris.items()}
    start = validated_epoch(run, uris[0])  # the base model or the warm-up, which an iteration has to surpass
    epochs = {layout.BASE: 0, start[0]: start[1], **epochs}
    compare, changes = comparer(run, epochs, rules.confidence), change_finder(run, epochs, rules.confidence)
    judged = assess(
        measured(run, {t: epoch for t, epoch in epochs.items() if t == start[0] or t >= 0}, references, rules.measure),
        compare,
        rules,
        max_iterations=max_iterations,
        steps_left=max_steps < 0 or facts["step"] < max_steps,
        changes=changes,
    )
    own, reference = judged[-1], references[iteration]
    return judged, {
        **{name: getattr(own, name) for name in ("outcome", "reason", "decision", "best", "next")},
        "confidence": rules.confidence,
        "from_base": as_facts(compare(layout.BASE, iteration), layout.BASE),
        "from_reference": as_facts(compare(reference, iteration), reference),
        "from_best": as_facts(own.change, own.against),
        "measure": rules.measure,
        "answer_changes": {
            name: as_facts(changes(name, before, iteration), before)
            for name, before in (
                *(("chrf", own.against), ("match", own.against)),
                *(("ended", reference), ("repetition", reference)),
                *([(rules.measure, own.against)] if rules.waits_for_evaluation else []),
            )
        },
    }


def _policy_files(run: RunStore, uri: str) -> dict[str, FileDigest]:
    """The policy's files by their keys, each verified in storage."""
    fetch_model(run, uri, what="the policy to publish")
    folder = run.key_of(uri)
    return {f"{folder}/{name}": file for name, file in model_files(run, uri).items()}


def _report(step: Step, judgement: Assessment, val_loss: float | None, freed_bytes: int) -> None:
    """Record the judgement of the iteration as an event and in the log; as a warning if it regressed or drifted."""
    fields = {name: getattr(judgement, name) for name in ("decision", "outcome", "reason", "next")}
    step.events.write("published", **fields, val_loss=val_loss, iteration_best=judgement.best, freed_bytes=freed_bytes)
    message = f"iteration {judgement.iteration}: {word_of(judgement.outcome)}, {judgement.reason}"
    best = name_of(judgement.best)
    if judgement.outcome not in REJECTED:
        logger.info("%s; the best is %s: %s", message, best, word_of(judgement.decision))
    elif judgement.next is None:
        step.warn(f"{message}; the run ends; the best is {best}")
    else:
        step.warn(f"{message}; the next iteration begins from {name_of(judgement.next)}")


def _tracked(facts: dict[str, Any]) -> dict[str, float]:
    """An iteration's numbers for trackers, over all shards."""
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


def _point_and_prune(step: Step, judged: list[Assessment], rules: SelectionSettings) -> int:
    """Move the pointers and delete what is not needed; repeating it does no harm.

    Returns: the bytes that were freed.
    """
    step.run.write_json(layout.LATEST, pointer_to(step.run, judged[-1].iteration))
    step.run.write_json(layout.BEST, pointer_to(step.run, judged[-1].best))
    rejected = [each.iteration for each in judged if each.outcome in REJECTED]
    return prune(step.run, len(judged), rejected, rules, step.settings)
