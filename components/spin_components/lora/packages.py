"""Whether what adapters need is installed."""

from __future__ import annotations

import importlib.util

from spin_components.errors import ConfigError
from spin_components.lora_settings import LoraSettings


def check_lora_packages(lora: LoraSettings) -> None:
    """Refuse adapters, or 4-bit weights, where their package is not installed.

    Raises:
        ConfigError: naming it.
    """
    wanted = {"peft": ("lora.r", lora.is_on), "bitsandbytes": ("lora.quantize", lora.is_quantized)}
    for package, (setting, is_set) in wanted.items():
        if is_set and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"{setting} is set, but the package {package} is not installed here; install the extra `lora`, "
                "or leave the setting out"
            )
