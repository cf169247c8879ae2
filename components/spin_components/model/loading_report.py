"""Checks of what transformers reports about the weights that it loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from spin_components.errors import ModelError
from spin_components.store.model_files import some_of

_WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")
"""What DataParallel, torch.compile and peft put before the name of every weight."""

_LEFT_OVER = (".v_head.", ".value_head.", ".score.", ".mtp.", ".rotary_emb.inv_freq", ".masked_bias")
"""Parts of names of weights that were trained beside a causal language model, or are buffers of old releases."""


def check_loaded(found: Mapping[str, Any], weights: Collection[str], *, what: str) -> list[str]:
    """Check what transformers reports about the weights that it loaded.

    Args:
        found: its `loading_info`.
        weights: names in the files.
        what: the model, for error messages.

    Returns: names in the files that are not used, and need not be.

    Raises:
        ModelError: weights are missing, left over or of another shape, so that random numbers stand in their place.
    """
    unexpected = {name for name in found["unexpected_keys"] if not any(part in f".{name}" for part in _LEFT_OVER)}
    problems = [
        f"{len(names)} {problem} ({some_of(names)})"
        for problem, names in (
            ("missing", found["missing_keys"]),
            ("unexpected", unexpected),
            ("of another shape", {_shapes(*entry) for entry in found["mismatched_keys"]}),
        )
        if names
    ]
    if not problems:
        return sorted(found["unexpected_keys"])
    prefix = next((each for each in _WRAPPERS if weights and all(name.startswith(each) for name in weights)), None)
    remedy = "download the model again, or correct config.json"
    if any(".lora_A." in name or ".base_layer." in name for name in weights):
        remedy = "merge the adapter (peft: merge_and_unload) before saving the model"
    elif prefix:
        remedy = f"every name begins with the wrapper's prefix {prefix!r}: save the model that is inside the wrapper"
    raise ModelError(
        f"{what}: the files do not hold the weights that config.json describes: {'; '.join(problems)}; {remedy}"
    )


def _shapes(name: str, stored: Collection[int], expected: Collection[int]) -> str:
    return f"{name}: {list(stored)}, expected {list(expected)}"
