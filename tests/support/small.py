"""Settings of runs that take seconds, shared by tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spin_components.settings.mistakes import parse_settings
from spin_components.settings.settings import Settings


def small_settings(uri: Path | str, model: Path | str, data: Path | str, /, **sections: dict[str, Any]) -> Settings:
    """One iteration of one epoch over twenty questions, on a CPU; section tables override."""
    values: dict[str, dict[str, Any]] = {
        "run": {"uri": str(uri)},
        "model": {"base": str(model)},
        "data": {
            "train": str(data),
            "validation_size": 8,
            "max_length": 160,
            "max_prompt_length": 96,
            "max_train_records": 20,
        },
        "spin": {"max_iterations": 1, "ref_policy_kl_penalty": 0.1},
        "generation": {"engine": "transformers", "max_new_tokens": 16},
        "training": {
            "precision": "float32",
            "global_batch_size": 8,
            "micro_batch_size": 4,
            "lr": 1e-3,
            "lr_schedule": "constant",
            "warmup": 0,
        },
        "validation": {"num_samples": 2},
        "selection": {"max_length_ratio": 0},  # answers are cut at 16 tokens
        "hardware": {"device": "cpu"},
    }
    for name, table in sections.items():
        values[name] = {**values.get(name, {}), **table}
    return parse_settings(values, source="the test")
