"""The tasks of the evaluation: checked before any training, and the user's own task files copied into the run."""

from __future__ import annotations

import shutil
from pathlib import Path

from spin_components.evaluate.task_files import find_tasks, open_task_files
from spin_components.evaluation_settings import EvaluationSettings
from spin_components.execution import Step
from spin_components.store import layout
from spin_components.store.digests import digest_of
from spin_components.store.sources import Source


def keep_tasks(step: Step, evaluation: EvaluationSettings) -> None:
    """Check that every task exists, and copy the user's task files into the run.

    Files that changed since an earlier attempt replace those of that attempt; models are then evaluated again.

    Raises:
        ConfigError: a task is unknown, or its file holds code that is not trusted.
        DataError: the files cannot be used.
    """
    source = open_task_files(step.run.sources, evaluation) if evaluation.task_files else None
    scratch = step.run.scratch_folder()
    scratch.mkdir(parents=True)
    find_tasks(evaluation, source.folder if source else None, scratch)
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
