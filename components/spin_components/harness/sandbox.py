"""Limits within which lm-evaluation-harness uses task files that are not trusted: templates, patterns, scoring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from jinja2 import Template
from jinja2.sandbox import SandboxedEnvironment

from spin_components.data.cpu_limit import CpuLimitError, cpu_limit
from spin_components.errors import EngineError

LIMIT_S = 20.0
"""Seconds of processor time in which a template must have rendered one document, and a document must be scored."""

FILTER_LIMIT_S, FILTER_ANSWER_LIMIT_S = 60.0, 0.1
"""Seconds of processor time for all filters of a task, and more for each answer: patterns of a task file may take
exponentially long on an answer."""


class LimitedTemplate(Template):
    """A template whose rendering is limited to `LIMIT_S`."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        """Render the template; raises `CpuLimitError` after the limit."""
        with cpu_limit(LIMIT_S):
            return super().render(*args, **kwargs)


@contextmanager
def limited_harness(*, trust: bool) -> Iterator[None]:
    """Have the harness render templates in a sandbox, where they reach no attribute that leads to code, and end filters
    and scoring that take too long.

    Args:
        trust: whether code of task files is trusted; the harness then stays as it is.

    Raises:
        EngineError: filters or the scoring of a document have passed their limit; the message names the task.
    """
    if trust:
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(_sandboxed_templates())
        stack.enter_context(_limited_scoring())
        yield


@contextmanager
def _sandboxed_templates() -> Iterator[None]:
    from lm_eval import utils

    own = utils.env
    utils.env = SandboxedEnvironment(
        undefined=own.undefined, keep_trailing_newline=own.keep_trailing_newline, loader=own.loader
    )
    utils.env.filters.update(own.filters)
    utils.env.template_class = LimitedTemplate
    try:
        yield
    finally:
        utils.env = own


@contextmanager
def _limited_scoring() -> Iterator[None]:
    from lm_eval.api.task import ConfigurableTask

    filters, results = ConfigurableTask.apply_filters, ConfigurableTask.process_results

    def apply_filters(task: Any) -> Any:
        limit_s = FILTER_LIMIT_S + FILTER_ANSWER_LIMIT_S * len(task.instances)
        return _limited(task, "filter_list", limit_s, lambda: filters(task))

    def process_results(task: Any, doc: Any, answers: Any) -> Any:
        return _limited(task, "metric_list", LIMIT_S, lambda: results(task, doc, answers))

    ConfigurableTask.apply_filters, ConfigurableTask.process_results = apply_filters, process_results
    try:
        yield
    finally:
        ConfigurableTask.apply_filters, ConfigurableTask.process_results = filters, results


def _limited(task: Any, key: str, limit_s: float, work: Callable[[], Any]) -> Any:
    try:
        with cpu_limit(limit_s):
            return work()
    except CpuLimitError as error:
        raise EngineError(
            f"evaluation.task_files: task {task.config.task}, {key}: {error}. A regular expression with nested "
            "repetitions takes exponentially long on some answers: simplify it, or leave the task out"
        ) from error
