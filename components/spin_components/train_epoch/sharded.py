"""A policy loaded in parts, for ZeRO-3: no rank ever holds all of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spin_components.device import Compute
from spin_components.modeling import load_model
from spin_components.scoring import load_scored, resolve_packing
from spin_components.settings import Settings
from spin_components.train_epoch.deepspeed_backend import engine_config


def load_for_ranks(folder: Path, settings: Settings, compute: Compute) -> Any:
    """A model for `DeepSpeedBackend`, which every rank calls.

    Under ZeRO-3 each parameter is divided as it is made, and the first rank reads the files. A packed model is loaded
    whole: whether packing gives its numbers is tried on all of its weights.

    Raises:
        ModelError: see `load_scored`.
    """
    if settings.training.zero_stage != 3 or resolve_packing(settings.training, compute) == "packed":
        return load_scored(folder, settings, compute)
    from transformers.integrations import HfDeepSpeedConfig

    divided = HfDeepSpeedConfig(engine_config(settings.training, compute))  # transformers looks for it while it lives
    model = load_model(folder, settings.model, device=compute.device)
    del divided
    return model
