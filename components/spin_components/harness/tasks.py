"""Evaluation of a model on tasks of lm-evaluation-harness."""

from __future__ import annotations

import difflib
import logging
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from numbers import Real
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from spin_components.data.shards import DocumentValue
from spin_components.errors import ConfigError, EngineError, SpinError
from spin_components.harness.sandbox import limited_harness
from spin_components.harness.task_files import check_task_files, write_located
from spin_components.settings.attempt import EvaluationSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spin_components.model.compute import Compute
    from spin_components.settings.settings import Settings

logger = logging.getLogger(__name__)

_BOOTSTRAPS = 1000
"""Bootstrap iterations for standard errors without a formula; the harness limits slow metrics to 100."""


def find_tasks(evaluation: EvaluationSettings, files: Path | None, scratch: Path) -> Any:
    """Create a harness task manager that has every requested task; no task is loaded yet.

    The harness's own tasks, thousands of files, are indexed only if a requested task is not among the user's.

    Args:
        evaluation: settings with the names of the tasks.
        files: folder of the user's task files; None for none. They are checked here, by the trust of this attempt.
        scratch: empty folder for generated task files.

    Raises:
        ConfigError: a task does not exist, or its file would run code that is not trusted.
        DataError: a data file of a task does not exist, or a task file cannot be used.
    """
    with _quiet():
        from lm_eval.tasks import TaskManager

        user_tasks: dict[str, Any] = {}
        located = scratch / "tasks"
        if files is not None:
            check_task_files(files, what=evaluation.task_files, trust=evaluation.trust_task_code)
            user_tasks = TaskManager(include_path=str(files), include_defaults=False).task_index
            needed = _needed(evaluation.tasks, user_tasks)
            for name in needed & user_tasks.keys():
                if user_tasks[name].yaml_path is not None:
                    write_located(user_tasks[name].yaml_path, files, user_tasks[name].cfg or {}, scratch)
            if needed <= user_tasks.keys():
                return TaskManager(include_path=str(located), include_defaults=False)
        manager = TaskManager(include_path=str(located) if located.exists() else None)
    if unknown := [name for name in evaluation.tasks if name not in manager.task_index]:
        similar = difflib.get_close_matches(unknown[0], {**manager.task_index, **user_tasks}, n=3)
        raise ConfigError(
            f"evaluation.tasks: {', '.join(unknown)} not found, neither in lm-evaluation-harness nor in "
            f"evaluation.task_files{'; similar tasks: ' + ', '.join(similar) if similar else ''}. "
            + (
                f"The task files define {', '.join(sorted(user_tasks))}"
                if user_tasks
                else "Set evaluation.task_files for tasks of your own"
            )
        )
    return manager


def _needed(names: Iterable[str], index: Mapping[str, Any]) -> set[str]:
    """Names of tasks and, for groups and tags, of all tasks in them."""
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


def run_tasks(
    settings: Settings,
    evaluation: EvaluationSettings,
    compute: Compute,
    manager: Any,
    folder: Path,
    *,
    chat_template: str | None = None,
    chat_template_date: str = "",
) -> tuple[dict[str, Any], list[DocumentValue]]:
    """Evaluate a model on tasks.

    Args:
        settings: settings of the run; its seed determines few-shot examples and sampling.
        evaluation: settings of the evaluation.
        compute: device and precision.
        manager: task manager from `find_tasks`.
        folder: folder of a model with full weights.
        chat_template: text of the file that `data.chat_template` names; None for the model's own template.
        chat_template_date: date and time of its clock; empty for the current time.

    Returns: by task or group `num_documents` and `metrics`; each metric has a `value`, its standard error `stderr` and
        `higher_is_better`, each None if unknown. Then the values of single documents, for metrics that are their mean.

    Raises:
        ConfigError: `chat_template` is set, but the tokenizer has no chat template.
        EngineError: the harness failed.
    """
    from spin_components.data.templates import model_template
    from spin_components.model.folder import load_tokenizer
    from spin_components.model.loading import load_model

    tokenizer = load_tokenizer(folder, settings.model)
    arguments: dict[str, Any] = {}
    if evaluation.chat_template:
        name = "" if settings.data.chat_template_file else settings.data.chat_template
        tokenizer.chat_template = chat_template or model_template(tokenizer, folder, name)[0]
        arguments |= settings.data.chat_template_kwargs
        if chat_template_date:
            arguments["strftime_now"] = datetime.fromisoformat(chat_template_date).strftime
    if evaluation.chat_template and not tokenizer.chat_template:
        raise ConfigError(
            "evaluation.chat_template = true, but the model's tokenizer has no chat template; set it to false"
        )
    model = load_model(folder, settings.model, device=compute.device).eval()
    with _quiet(), _explained(evaluation.tasks), limited_harness(trust=evaluation.trust_task_code):
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        lm = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=evaluation.batch_size,
            mixed_precision_dtype="bfloat16" if compute.precision == "bf16" else None,
            chat_template_args=arguments,
        )
        results = simple_evaluate(
            model=lm,
            tasks=list(evaluation.tasks),
            task_manager=manager,
            num_fewshot=None if evaluation.num_fewshot < 0 else evaluation.num_fewshot,
            limit=None if evaluation.limit == 1.0 and isinstance(evaluation.limit, float) else evaluation.limit,
            batch_size=evaluation.batch_size,
            bootstrap_iters=_BOOTSTRAPS,
            log_samples=True,
            apply_chat_template=evaluation.chat_template,
            random_seed=settings.run.seed,
            numpy_random_seed=settings.run.seed,
            torch_random_seed=settings.run.seed,
            fewshot_random_seed=settings.run.seed,
            confirm_run_unsafe_code=evaluation.trust_task_code,
        )
    figures = _figures(results)
    return figures, document_values(results.get("samples", {}), figures)


def _figures(results: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics from the harness's results."""
    figures: dict[str, Any] = {}
    for task, table in results["results"].items():
        values = {key.removesuffix(",none"): value for key, value in table.items() if "," in key}
        directions = results["higher_is_better"].get(task, {})
        metrics = {
            key: {
                "value": _number(value),
                "stderr": _number(values.get(_stderr_of(key))),
                "higher_is_better": directions.get(key.partition(",")[0]),
            }
            for key, value in values.items()
            if "_stderr" not in key and isinstance(value, (int, float))
        }
        if metrics:
            count = results["n-samples"].get(task, {}).get("effective", table.get("sample_len"))
            figures[task] = {"num_documents": None if count is None else int(count), "metrics": metrics}
    return figures


def document_values(
    samples: Mapping[str, Sequence[Mapping[str, Any]]], figures: Mapping[str, Any]
) -> list[DocumentValue]:
    """Values of single documents, of those metrics whose value is their mean.

    A metric that is computed from all documents at once, such as BLEU or a perplexity, has none.

    Args:
        samples: by task, the harness's log of each document and filter.
        figures: see `run_tasks`.
    """
    rows: list[DocumentValue] = []
    for task, logged in samples.items():
        by_metric: dict[str, dict[int, Any]] = {}
        for sample in logged:
            kind = "" if sample["filter"] == "none" else f",{sample['filter']}"
            for metric in sample["metrics"]:
                by_metric.setdefault(f"{metric}{kind}", {})[int(sample["doc_id"])] = sample[metric]
        for metric, by_document in by_metric.items():
            values = [float(value) for value in by_document.values() if isinstance(value, Real)]
            whole = figures.get(task, {}).get("metrics", {}).get(metric, {}).get("value")
            if whole is None or len(values) < len(by_document) or not math.isclose(fmean(values), whole, abs_tol=1e-9):
                continue
            rows += [DocumentValue(task, metric, index, float(value)) for index, value in sorted(by_document.items())]
    return rows


def _stderr_of(key: str) -> str:
    """Key of a metric's standard error: `exact_match,strict` has `exact_match_stderr,strict`."""
    metric, comma, kind = key.partition(",")
    return f"{metric}_stderr{comma}{kind}"


def _number(value: Any) -> float | None:
    """A finite number, else None; the harness writes N/A for a missing standard error."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


@contextmanager
def _explained(tasks: Sequence[str]) -> Iterator[None]:
    """Context manager that turns exceptions of the harness into `EngineError`."""
    try:
        yield
    except SpinError:
        raise
    except Exception as error:  # tasks, their data and their code may raise anything
        raise EngineError(
            f"lm-evaluation-harness failed on {', '.join(tasks)}: {type(error).__name__}: {error}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Context manager that suppresses warnings of the harness and its libraries."""
    level = logging.getLogger("lm_eval").level
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("lm_eval").setLevel(level)
