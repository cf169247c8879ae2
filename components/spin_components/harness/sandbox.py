"""The Jinja environment in which lm-evaluation-harness renders templates of task files that are not trusted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jinja2 import Template
from jinja2.sandbox import SandboxedEnvironment

from spin_components.data.cpu_limit import cpu_limit

LIMIT_S = 20.0
"""Seconds of processor time in which a template must have rendered one document."""


class LimitedTemplate(Template):
    """A template whose rendering is limited to `LIMIT_S`."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        """Render the template; raises `CpuLimitError` after the limit."""
        with cpu_limit(LIMIT_S):
            return super().render(*args, **kwargs)


@contextmanager
def plain_templates(*, trust: bool) -> Iterator[None]:
    """Have the harness render templates in a sandbox, where they reach no attribute that leads to code.

    Args:
        trust: whether code of task files is trusted; the harness's own environment then stays.
    """
    from lm_eval import utils

    own = utils.env
    if not trust:
        utils.env = SandboxedEnvironment(
            undefined=own.undefined, keep_trailing_newline=own.keep_trailing_newline, loader=own.loader
        )
        utils.env.filters.update(own.filters)
        utils.env.template_class = LimitedTemplate
    try:
        yield
    finally:
        utils.env = own
