"""Tasks that models will be evaluated by: known before any training, and the user's own files kept in the run."""

from __future__ import annotations

import shutil

from spin_components.evaluate.harness import find_tasks
from spin_components.evaluate.task_files import open_task_files
from spin_components.evaluation_settings import EvaluationSettings
from spin_components.execution import Step
from spin_components.store import layout
from spin_components.store.digests import digest_of
from spin_components.store.manifests import Manifest, read_manifest
from spin_components.store.sources import Source


def keep_tasks(current: Step, evaluation: EvaluationSettings) -> None:
    """Check that every task is there, and copy the user's task files to where each step of the run finds them.

    Files that changed since an earlier attempt replace those that were kept; models are then evaluated again.

    Raises:
        ConfigError: a task is unknown, or its file holds code that is not trusted.
        DataError: the files cannot be used.
    """
    source = open_task_files(current.run.sources, evaluation) if evaluation.task_files else None
    scratch = current.run.scratch_folder()
    scratch.mkdir(parents=True)
    find_tasks(evaluation, source.folder if source else None, scratch)
    if source:
        _keep(current, source)


def _keep(current: Step, source: Source) -> None:
    run, key = current.run, layout.inputs_manifest("tasks")
    inputs = {"evaluation.task_files (content)": digest_of(source.digests)}
    if run.exists(key) and read_manifest(run, key).inputs == inputs:
        return
    run.delete(key)  # it means complete, and its files are about to be replaced
    with run.staged(layout.TASKS) as staged:
        for name in source.names:
            target = staged.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.folder / name, target)
    current.commit(key, Manifest(step="prepare (tasks)", inputs=inputs, outputs=staged.outputs))
