"""Comparison of a run's settings with the tasks that the pipeline was compiled with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spin_components.errors import ConfigError
from spin_components.settings.settings import Settings


def check_iterations(settings: Mapping[str, Any], compiled: Mapping[str, Any]) -> None:
    """Refuse more iterations than the pipeline has tasks for, before lists of one number an iteration are checked."""
    number = settings.get("spin", {}).get("max_iterations")
    if isinstance(number, (int, float)) and number > compiled["max_iterations"]:
        raise ConfigError(
            f"spin.max_iterations = {int(number)}, but this pipeline was compiled for at most "
            f"{int(compiled['max_iterations'])}; lower it, or compile again"
        )


def check_shape(settings: Settings, compiled: Mapping[str, Any]) -> None:
    """Refuse settings that the pipeline was not compiled for."""
    fixed = {
        "generation.shards": (settings.generation.shards, int(compiled["shards"])),
        "hardware.nodes": (settings.hardware.nodes, int(compiled["nodes"])),
    }
    for name, (value, built) in fixed.items():
        if value != built:
            raise ConfigError(f"{name} = {value}, but this pipeline was compiled for {built}; compile it again")
    if settings.evaluation.is_on and not compiled.get("evaluates", False):
        raise ConfigError(
            "[evaluation] asks for tasks or a judge, but this pipeline was compiled without the step that evaluates; "
            "compile it again with them"
        )
    waits, is_compiled = settings.selection.waits_for_evaluation, compiled.get("decides", False)
    if waits != is_compiled:
        raise ConfigError(
            f"selection.measure = {settings.selection.measure!r}, but this pipeline was compiled for verdicts that "
            f"{'wait' if is_compiled else 'do not wait'} for the evaluation; compile it again"
        )
    for name, is_on, key, tasks in (
        ("warm_up.max_epochs", settings.warm_up.is_on, "warms_up", "a warm-up"),
        ("control.sft", settings.control.sft, "controls", "controls"),
    ):
        if is_on != compiled.get(key, False):
            found = getattr(getattr(settings, name.partition(".")[0]), name.partition(".")[2])
            raise ConfigError(
                f"{name} = {found}, but this pipeline was compiled {'without' if is_on else 'with'} {tasks}; compile "
                "it again"
            )
    epochs = [settings.spin.epochs(t) for t in range(settings.spin.max_iterations)]
    compiled_epochs = [int(number) for number in compiled["max_epochs"]]
    if epochs != compiled_epochs[: len(epochs)]:
        raise ConfigError(
            f"spin.max_epochs = {settings.spin.max_epochs}, but this pipeline was compiled for {compiled_epochs}, one "
            "number an iteration; compile it again"
        )
