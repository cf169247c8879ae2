"""The user's own task files: checked before anything runs them, and told where their data lies on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    """Refuse task files that cannot be read, or that would run code which nobody said to trust.

    Templates in them are Jinja, which the harness evaluates: they are code of a kind too, and taken as they are.

    Args:
        folder: of the files.
        what: the address they came from, for the error.
        trust: whether code in them is allowed: `evaluation.trust_task_code`.

    Raises:
        DataError: there is none, or one is not YAML.
        ConfigError: one names code.
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
    """Line and name of what runs code."""
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
    """Write a task file that is another one, but for the places of its data: absolute, so that any folder will do.

    Args:
        path: of the other one.
        root: folder of all task files.
        task: what it says, with all that it includes.
        folder: to write to, with a subfolder `datasets` for what is made of the data.

    Raises:
        DataError: a data file is not there.
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
    """A path, or a pattern, as it holds here: beside the file that names it, or below the folder of all."""
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
