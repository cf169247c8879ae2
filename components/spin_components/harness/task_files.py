"""The user's own task files for lm-evaluation-harness: checks, and absolute paths to their data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from spin_components.errors import DataError
from spin_components.harness.plain_tasks import check_plain
from spin_components.settings.attempt import EvaluationSettings
from spin_components.store.sources import Source, Sources


def open_task_files(sources: Sources, evaluation: EvaluationSettings) -> Source:
    """Open and check the user's task files; raises as `Sources.open_model` and `check_task_files`."""
    source = sources.open_model(evaluation.task_files, what="evaluation.task_files")
    check_task_files(source.folder, what=evaluation.task_files, trust=evaluation.trust_task_code)
    return source


def check_task_files(folder: Path, *, what: str, trust: bool) -> None:
    """Check that task files are valid YAML, and plain data unless code is trusted; see `check_plain`.

    Jinja templates in task files are rendered in a sandbox unless code is trusted; see `run_tasks`.

    Args:
        folder: folder of the task files.
        what: their address, for the error.
        trust: whether code is allowed, `evaluation.trust_task_code`.

    Raises:
        DataError: there are no task files, or one is not YAML, too large or nested too deeply.
        ConfigError: one would run code that is not trusted.
    """
    files = sorted(folder.rglob("*.yaml"))
    if not files:
        raise DataError(f"evaluation.task_files = {what!r} has no task file; expected *.yaml files and their data")
    for path in files:
        check_plain(path, path.relative_to(folder).as_posix(), trust=trust)


def write_located(path: Path, root: Path, task: Mapping[str, Any], folder: Path) -> None:
    """Write a task file that includes another one and has absolute paths to its data.

    Args:
        path: path of the original task file.
        root: folder of all task files.
        task: content of the original task file with all its includes.
        folder: folder to write to; its subfolder `datasets` is the cache of converted data.

    Raises:
        DataError: a data file does not exist.
    """
    where = path.relative_to(root).as_posix()
    located: dict[str, Any] = {"include": str(path)}
    source = task.get("dataset_path")
    kwargs = dict(task.get("dataset_kwargs") or {})
    if isinstance(source, str) and _is_relative(source) and (path.parent / source).is_dir():
        located["dataset_path"] = str(path.parent / source)
    if "data_files" in kwargs:
        kwargs["data_files"] = _each_located(kwargs["data_files"], path.parent, root, where)
    if "data_dir" in kwargs:
        kwargs["data_dir"] = _located(str(kwargs["data_dir"]), path.parent, root, where)
    if {"data_files", "data_dir"} & kwargs.keys():
        located["dataset_kwargs"] = {**kwargs, "cache_dir": str(folder / "datasets")}
    target = folder / "tasks" / where
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(yaml.safe_dump(located), encoding="utf-8")


def _each_located(names: Any, beside: Path, root: Path, where: str) -> Any:
    """Absolute paths in `data_files`: a name, a list of names, or either of them by split."""
    if isinstance(names, dict):
        return {split: _each_located(value, beside, root, where) for split, value in names.items()}
    if isinstance(names, list):
        return [_each_located(value, beside, root, where) for value in names]
    return _located(str(names), beside, root, where)


def _located(name: str, beside: Path, root: Path, where: str) -> str:
    """Absolute form of a path or pattern, relative to the task file's folder or to the folder of all task files."""
    if not _is_relative(name):
        return name
    for folder in (beside, root):
        if (folder / name).exists() or ("*" in name and next(folder.glob(name), None)):
            return str(folder / name)
    raise DataError(
        f"evaluation.task_files: {where} reads its data from {name!r}, which exists neither next to it nor in the "
        "folder of the task files; add the file"
    )


def _is_relative(name: str) -> bool:
    return "://" not in name and not Path(name).is_absolute()
