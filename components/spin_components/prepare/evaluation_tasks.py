"""The tasks of the evaluation: checked before any training, and the user's own task files copied into the run."""

from __future__ import annotations

import shutil
from pathlib import Path

from spin_components.errors import ConfigError
from spin_components.harness.task_files import open_task_files
from spin_components.harness.tasks import find_tasks
from spin_components.runtime.step import Step
from spin_components.settings.attempt import EvaluationSettings
from spin_components.settings.selection import task_measure
from spin_components.store import layout
from spin_components.store.digests import digest_of
from spin_components.store.sources import Source


def keep_tasks(step: Step, evaluation: EvaluationSettings, measure: str = "nll") -> None:
    """Check that every task exists, and copy the user's task files into the run.

    Files that changed since an earlier attempt replace those of that attempt; models are then evaluated again.

    Args:
        step: the running step.
        evaluation: `[evaluation]`.
        measure: `selection.measure`.

    Raises:
        ConfigError: a task is unknown, or its file holds code that is not trusted; or a tag is to decide.
        DataError: the files cannot be used.
    """
    source = open_task_files(step.run.sources, evaluation) if evaluation.task_files else None
    scratch = step.run.scratch_folder()
    scratch.mkdir(parents=True)
    manager = find_tasks(evaluation, source.folder if source else None, scratch)
    task = task_measure(measure)[0]
    if task and manager.task_index[task].kind.name == "TAG":
        raise ConfigError(
            f"selection.measure = {measure!r}: {task} is a tag, whose tasks have results of their own; add one of them "
            "to evaluation.tasks, and name it"
        )
    if source:
        _keep(step, source)


def _keep(step: Step, source: Source) -> None:
    def copy(folder: Path) -> None:
        for name in source.names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.folder / name, target)

    inputs = {"evaluation.task_files (content)": digest_of(source.digests)}
    manifest = layout.inputs_manifest("tasks")
    step.keep(layout.TASKS, inputs, copy, manifest=manifest, what="tasks", replaces=True)
