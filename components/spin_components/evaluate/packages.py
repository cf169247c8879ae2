"""Whether what an evaluation needs is installed."""

from __future__ import annotations

import importlib.util

from spin_components.errors import ConfigError
from spin_components.evaluation_settings import EvaluationSettings


def check_evaluation_packages(evaluation: EvaluationSettings) -> None:
    """Refuse tasks, or a judge, where their package is not installed.

    Raises:
        ConfigError: naming it.
    """
    wanted = {
        "lm_eval": ("evaluation.tasks", bool(evaluation.tasks)),
        "openai": ("evaluation.judge_url", bool(evaluation.judge_url)),
    }
    for package, (setting, is_set) in wanted.items():
        if is_set and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"{setting} is set, but the package {package} is not installed here; install the extra `evaluate`, "
                "or leave the setting out"
            )
