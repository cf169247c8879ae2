"""Runs the steps of a run in this process, in the order of the DAG, which is tested separately."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spin_components.checkpoint.step import publish
from spin_components.control.step import control
from spin_components.evaluate.step import evaluate, evaluate_to_decide
from spin_components.generate.step import generate_shard
from spin_components.prepare.step import prepare
from spin_components.ref_logprob.step import score_shard
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.local import LocalRun
from spin_components.train_epoch.step import train
from spin_components.validate.step import validate
from spin_components.warm_up.step import warm_up


def begin(settings: Settings) -> str:
    """Prepare and validate the base model; returns the first reference."""
    spin, generation = settings.spin, settings.generation
    compiled = {
        "max_iterations": spin.max_iterations,
        "max_epochs": [spin.epochs(t) for t in range(spin.max_iterations)],
        "shards": generation.shards,
        "nodes": settings.hardware.nodes,
        "evaluates": settings.evaluation.is_on,
        "warms_up": settings.warm_up.is_on,
        "controls": settings.control.sft,
        "decides": settings.selection.waits_for_evaluation,
    }
    sections = settings.model_dump(mode="json", include=set(Settings.model_fields))
    base = prepare(settings.run.uri, sections, compiled)
    return validate(settings.run.uri, layout.BASE, 0, base, hardware(settings), "")


def play_scores(settings: Settings, iteration: int, reference: str) -> list[str]:
    """Generate and score every shard of an iteration."""
    uri, machine = settings.run.uri, hardware(settings)
    scores = []
    for shard in range(settings.generation.shards):
        generations = generate_shard(uri, iteration, shard, reference, machine)
        scores.append(score_shard(uri, iteration, shard, reference, generations, machine))
    return scores


def play_iteration(settings: Settings, iteration: int, reference: str) -> str:
    """Run one iteration; returns the next reference, or empty."""
    uri, machine = settings.run.uri, hardware(settings)
    scores = play_scores(settings, iteration, reference)
    policy = reference
    for epoch in range(settings.spin.epochs(iteration)):
        policy = train(uri, iteration, epoch, policy, scores, machine)
        policy = validate(uri, iteration, epoch, policy, machine, reference)
    if settings.selection.waits_for_evaluation:
        policy = play_evaluations(settings, iteration, reference, policy)
    selection = settings.selection.model_dump(mode="json")
    return publish(uri, iteration, reference, policy, settings.spin.max_iterations, selection)


def play_evaluations(settings: Settings, iteration: int, reference: str, policy: str) -> str:
    """Run the evaluations that the verdict on an iteration waits for; returns its policy, or empty."""
    uri, machine, before = settings.run.uri, hardware(settings), reference
    if iteration == 0:
        for number in (layout.BASE, *([layout.WARM_UP] if settings.warm_up.is_on else [])):
            before = evaluate_to_decide(uri, number, reference, before, machine)
    return evaluate_to_decide(uri, iteration, policy, before, machine)


def play_warm_up(settings: Settings, base: str) -> str:
    """Fine-tune the base model and validate the result; returns the first reference."""
    uri, machine = settings.run.uri, hardware(settings)
    return validate(uri, layout.WARM_UP, 0, warm_up(uri, base, machine), machine, "")


def play_control(settings: Settings, iteration: int, start: str) -> None:
    """Train the control of an iteration and validate it; `start` is the reference of iteration 0."""
    uri, machine = settings.run.uri, hardware(settings)
    validate(uri, layout.control(iteration), 0, control(uri, iteration, start, machine), machine, "")
    if settings.selection.waits_for_evaluation:
        evaluate(uri, layout.control(iteration), machine)


def play(settings: Settings) -> LocalRun:
    """Run or resume a whole run in a local folder."""
    play_anywhere(settings)
    return LocalRun(Path(settings.run.uri))


def play_anywhere(settings: Settings) -> None:
    """Run or resume a whole run."""
    reference = begin(settings)
    if settings.warm_up.is_on:
        reference = play_warm_up(settings, reference)
    start = reference
    for iteration in range(settings.spin.max_iterations):
        reference = play_iteration(settings, iteration, reference)
        if settings.control.sft:
            play_control(settings, iteration, start)
        if not reference:
            break


def hardware(settings: Settings) -> dict[str, Any]:
    """`[hardware]` as the DAG passes it."""
    return settings.hardware.model_dump(mode="json")


def losses(run: RunStore) -> list[float]:
    """The loss of every training step of a run, in order."""
    keys = sorted(run.list("iterations", "*/epochs/*/metrics.json"))
    return [row["loss"] for key in keys for row in json.loads(run.read(key) or b"")["steps"]]


def val_losses(run: RunStore) -> list[float]:
    """val_loss of the base, then of each published iteration."""
    keys = [layout.BASE_VALIDATION, *sorted(run.list("iterations", "*/checkpoint.json"))]
    return [run.read_json(key)["facts"]["val_loss"] for key in keys]
