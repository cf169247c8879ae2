"""Runs tasks of lm-evaluation-harness on one model."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_components.errors import ConfigError, EngineError, SpinError
from spin_components.evaluate.task_files import quiet_harness
from spin_components.evaluation_settings import EvaluationSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spin_components.device import Compute
    from spin_components.settings import Settings

logger = logging.getLogger(__name__)

_BOOTSTRAPS = 1000
"""For standard errors of metrics that have no formula; the harness takes 100 at most for the slow ones."""


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
    with quiet_harness(), _explained(evaluation.tasks):
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
