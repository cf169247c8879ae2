"""Loads a policy sharded for ZeRO-3, so that no rank holds all weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spin_components.device import Compute
from spin_components.modeling import load_model
from spin_components.scoring import load_scored, resolve_packing
from spin_components.settings import Settings
from spin_components.train_epoch.deepspeed_backend import engine_config


def load_for_ranks(folder: Path, settings: Settings, compute: Compute) -> Any:
    """Load a model for `DeepSpeedBackend`; every rank calls it.

    Under ZeRO-3 each parameter is sharded as it is created, and the first rank reads the files. A packed model is
    loaded whole, because the check of packed attention needs all weights.

    Raises:
        ModelError: see `load_scored`.
    """
    if settings.training.zero_stage != 3 or resolve_packing(settings.training, compute) == "packed":
        return load_scored(folder, settings, compute)
    from transformers.integrations import HfDeepSpeedConfig

    sharding = HfDeepSpeedConfig(engine_config(settings.training, compute))  # transformers finds it while it exists
    model = load_model(folder, settings.model, device=compute.device)
    del sharding
    return model
