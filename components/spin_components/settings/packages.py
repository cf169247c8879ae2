"""Whether the optional packages that settings need are installed."""

from __future__ import annotations

import importlib.util

from spin_components.errors import ConfigError
from spin_components.settings.attempt import EvaluationSettings, TrackingSettings
from spin_components.settings.training import LoraSettings


def check_packages(*sections: LoraSettings | EvaluationSettings | TrackingSettings) -> None:
    """Refuse sections of the settings that need a package which is not installed.

    Raises:
        ConfigError: naming the setting, the package, and the extra that installs it.
    """
    for section in sections:
        extra, packages = _needs(section)
        for package, (setting, is_set) in packages.items():
            if is_set and importlib.util.find_spec(package) is None:
                raise ConfigError(
                    f"{setting} is set, but the package {package} is not installed here; install the extra `{extra}`, "
                    "or leave the setting out"
                )


def _needs(
    section: LoraSettings | EvaluationSettings | TrackingSettings,
) -> tuple[str, dict[str, tuple[str, bool]]]:
    """The extra of a section, and its packages: the setting that needs each, and whether it is set."""
    match section:
        case LoraSettings():
            return "lora", {
                "peft": ("lora.r", section.is_on),
                "bitsandbytes": ("lora.quantize", section.is_quantized),
            }
        case EvaluationSettings():
            return "evaluate", {
                "lm_eval": ("evaluation.tasks", bool(section.tasks)),
                "openai": ("evaluation.judge_url", bool(section.judge_url)),
            }
        case TrackingSettings():
            return "tracking", {
                "tensorboard": ("tracking.tensorboard", section.tensorboard),
                "mlflow": ("tracking.mlflow_uri", bool(section.mlflow_uri)),
                "wandb": ("tracking.wandb_project", bool(section.wandb_project)),
            }
