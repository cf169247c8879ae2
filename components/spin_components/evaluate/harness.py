"""lm-evaluation-harness on one model: tasks found by name, results as plain numbers."""

from __future__ import annotations

import difflib
import logging
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_components.errors import ConfigError, EngineError, SpinError
from spin_components.evaluate.task_files import write_located
from spin_components.evaluation_settings import EvaluationSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spin_components.device import Compute
    from spin_components.settings import Settings

logger = logging.getLogger(__name__)

_BOOTSTRAPS = 1000
"""For standard errors of metrics that have no formula; the harness takes 100 at most for the slow ones."""


def find_tasks(evaluation: EvaluationSettings, files: Path | None, scratch: Path) -> Any:
    """The harness's task manager, knowing every task that is asked for; nothing is loaded yet.

    Its own tasks, thousands of files, are read only where a name is not among the user's.

    Args:
        evaluation: names the tasks.
        files: folder of the user's task files, checked; None for none.
        scratch: an empty folder to write to.

    Raises:
        ConfigError: there is no task of a name.
        DataError: a task's data file is not there.
    """
    with _quiet():
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
    """The tasks asked for and, where they are groups or tags, those that are in them."""
    found: set[str] = set()
    rest = list(names)
    while rest:
        name = rest.pop()
        if name in found:
            continue
        found.add(name)
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
    return found


def run_tasks(
    settings: Settings, evaluation: EvaluationSettings, compute: Compute, manager: Any, folder: Path
) -> dict[str, Any]:
    """Evaluate a model.

    Args:
        settings: of the run; its seed fixes few-shot examples and sampling.
        evaluation: which tasks, and how.
        compute: device and precision.
        manager: of `find_tasks`.
        folder: of a plain model.

    Returns: by task or group: `num_documents` and `metrics`, each a `value` and its standard error `stderr`, None
        where there is none.

    Raises:
        ConfigError: the model has no chat template, and one is asked for.
        EngineError: the harness failed; says how.
    """
    from spin_components.modeling import load_model
    from spin_components.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder, settings.model)
    if evaluation.chat_template and not tokenizer.chat_template:
        raise ConfigError("evaluation.chat_template = true, but the model's tokenizer has none; set it to false")
    model = load_model(folder, settings.model, device=compute.device).eval()
    with _quiet(), _explained(evaluation.tasks):
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        lm = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=evaluation.batch_size,
            mixed_precision_dtype="bfloat16" if compute.precision == "bf16" else None,
        )
        found = simple_evaluate(
            model=lm,
            tasks=list(evaluation.tasks),
            task_manager=manager,
            num_fewshot=None if evaluation.num_fewshot < 0 else evaluation.num_fewshot,
            limit=None if evaluation.limit == 1.0 and isinstance(evaluation.limit, float) else evaluation.limit,
            batch_size=evaluation.batch_size,
            bootstrap_iters=_BOOTSTRAPS,
            log_samples=False,
            apply_chat_template=evaluation.chat_template,
            random_seed=settings.run.seed,
            numpy_random_seed=settings.run.seed,
            torch_random_seed=settings.run.seed,
            fewshot_random_seed=settings.run.seed,
            confirm_run_unsafe_code=evaluation.trust_task_code,
        )
    return _figures(found)


def _figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the harness returns, without all that describes the machine."""
    figures: dict[str, Any] = {}
    for task, table in found["results"].items():
        values = {key.removesuffix(",none"): value for key, value in table.items() if "," in key}
        metrics = {
            key: {"value": _number(value), "stderr": _number(values.get(_stderr_of(key)))}
            for key, value in values.items()
            if "_stderr" not in key and isinstance(value, (int, float))
        }
        if metrics:
            count = found["n-samples"].get(task, {}).get("effective", table.get("sample_len"))
            figures[task] = {"num_documents": None if count is None else int(count), "metrics": metrics}
    return figures


def _stderr_of(key: str) -> str:
    """`exact_match,strict` has `exact_match_stderr,strict`."""
    metric, comma, kind = key.partition(",")
    return f"{metric}_stderr{comma}{kind}"


def _number(value: Any) -> float | None:
    """A finite number; the harness writes N/A where there is no standard error."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


@contextmanager
def _explained(tasks: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except SpinError:
        raise
    except Exception as error:  # whatever tasks, their data or their code raise
        raise EngineError(
            f"lm-evaluation-harness failed on {', '.join(tasks)}: {type(error).__name__}: {error}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """What the harness and its libraries warn of is about themselves."""
    level = logging.getLogger("lm_eval").level
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("lm_eval").setLevel(level)
