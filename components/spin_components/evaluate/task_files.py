"""Tasks of lm-evaluation-harness: found by name; the user's own files checked, and their data located."""

from __future__ import annotations

import difflib
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from spin_components.errors import ConfigError, DataError
from spin_components.evaluation_settings import EvaluationSettings
from spin_components.store.sources import Source, Sources

_FUNCTION = "!function"
_CODE_KEYS = ("unsafe_code", "hf_evaluate")
"""Keys of a task that make the harness run code that is not its own: of the model's answers, of a metric."""


def open_task_files(sources: Sources, evaluation: EvaluationSettings) -> Source:
    """The user's task files on this machine, checked; see `check_task_files` and `Sources.open_model` for errors."""
    source = sources.open_model(evaluation.task_files, what="evaluation.task_files")
    check_task_files(source.folder, what=evaluation.task_files, trust=evaluation.trust_task_code)
    return source


def check_task_files(folder: Path, *, what: str, trust: bool) -> None:
    """Refuse task files that cannot be read, or that run code without `evaluation.trust_task_code`.

    Jinja templates in them, which the harness evaluates, are not checked.

    Args:
        folder: of the files.
        what: the address they came from, for the error.
        trust: whether code in them is allowed: `evaluation.trust_task_code`.

    Raises:
        DataError: there is no file, or one is not YAML.
        ConfigError: one runs code that is not trusted.
    """
    files = sorted(folder.rglob("*.yaml"))
    if not files:
        raise DataError(f"evaluation.task_files = {what!r} holds no task file; expected *.yaml, and their data, in it")
    for path in files:
        name = path.relative_to(folder).as_posix()
        try:
            node = yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            said = " ".join(str(error).split())
            raise DataError(f"evaluation.task_files: {name} is not YAML: {said}") from error
        if not trust and (found := next(_code_in(node), None)):
            line, code = found
            raise ConfigError(
                f"evaluation.task_files: {name}, line {line}: {code} runs code that is not the harness's own. If you "
                "trust it, set evaluation.trust_task_code = true"
            )


def _code_in(node: Any) -> Iterator[tuple[int, str]]:
    """Yield line and name of keys and tags that run code."""
    if node is None:
        return
    if node.tag == _FUNCTION:
        yield node.start_mark.line + 1, f"{_FUNCTION} {node.value}"
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value in _CODE_KEYS and str(value.value).lower() != "false":
                yield key.start_mark.line + 1, str(key.value)
            yield from _code_in(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _code_in(value)


def write_located(path: Path, root: Path, task: Mapping[str, Any], folder: Path) -> None:
    """Write a task file that includes another one, with absolute paths of its data.

    Args:
        path: of the other task file.
        root: folder of all task files.
        task: its content, with all that it includes.
        folder: to write to; its subfolder `datasets` is the cache of prepared data.

    Raises:
        DataError: a data file is missing.
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
    """`data_files` as the harness takes them: a name, a list of them, or either for each split."""
    if isinstance(names, dict):
        return {split: _each_located(value, beside, root, where) for split, value in names.items()}
    if isinstance(names, list):
        return [_each_located(value, beside, root, where) for value in names]
    return _located(str(names), beside, root, where)


def _located(name: str, beside: Path, root: Path, where: str) -> str:
    """The absolute form of a path or pattern: beside the file that names it, or below the folder of all task files."""
    if not _is_relative(name):
        return name
    for folder in (beside, root):
        if (folder / name).exists() or ("*" in name and next(folder.glob(name), None)):
            return str(folder / name)
    raise DataError(
        f"evaluation.task_files: {where} takes its data from {name!r}, which lies neither beside it nor in the folder "
        "of the task files; put it there"
    )


def _is_relative(name: str) -> bool:
    return "://" not in name and not Path(name).is_absolute()


def find_tasks(evaluation: EvaluationSettings, files: Path | None, scratch: Path) -> Any:
    """The harness's task manager with every task of `evaluation.tasks`; no task is loaded.

    The harness's own tasks, thousands of files, are read only if a name is not among the user's.

    Args:
        evaluation: names the tasks.
        files: folder of the user's task files, checked; None for none.
        scratch: an empty folder to write to.

    Raises:
        ConfigError: there is no task of a name.
        DataError: a task's data file is missing.
    """
    with quiet_harness():
        from lm_eval.tasks import TaskManager

        mine: dict[str, Any] = {}
        located = scratch / "tasks"
        if files is not None:
            mine = TaskManager(include_path=str(files), include_defaults=False).task_index
            needed = _needed(evaluation.tasks, mine)
            for name in needed & mine.keys():
                if mine[name].yaml_path is not None:
                    write_located(mine[name].yaml_path, files, mine[name].cfg or {}, scratch)
            if needed <= mine.keys():
                return TaskManager(include_path=str(located), include_defaults=False)
        both = TaskManager(include_path=str(located) if located.exists() else None)
    if unknown := [name for name in evaluation.tasks if name not in both.task_index]:
        like = difflib.get_close_matches(unknown[0], {**both.task_index, **mine}, n=3)
        raise ConfigError(
            f"evaluation.tasks names {', '.join(unknown)}, which neither lm-evaluation-harness nor "
            f"evaluation.task_files has{'; like it: ' + ', '.join(like) if like else ''}. "
            + (f"The files have {', '.join(sorted(mine))}" if mine else "Tasks of your own: evaluation.task_files")
        )
    return both


def _needed(names: Iterable[str], index: Mapping[str, Any]) -> set[str]:
    """The tasks of some names, with the members of groups and tags."""
    needed: set[str] = set()
    rest = list(names)
    while rest:
        name = rest.pop()
        if name in needed:
            continue
        needed.add(name)
        if (entry := index.get(name)) is None:
            continue
        if entry.kind.name == "TAG":
            rest += entry.tags
        children = (entry.cfg or {}).get("task")
        for child in children if isinstance(children, list) else []:
            if isinstance(child, str):
                rest.append(child)
            elif isinstance(child, dict) and "dataset_path" not in child and isinstance(child.get("task"), str):
                rest.append(child["task"])
    return needed


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Hide warnings of the harness and its libraries, which are about themselves."""
    level = logging.getLogger("lm_eval").level
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("lm_eval").setLevel(level)
