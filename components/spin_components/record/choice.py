"""The epoch of an iteration whose policy is published."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from spin_components.store.manifests import Manifest


def choose_epoch(validations: Sequence[Manifest], rule: Literal["last", "best"]) -> int:
    """The epoch whose policy is published: the last, or that of the lowest val_loss, the earlier of equals.

    Args:
        validations: one manifest an epoch.
        rule: `selection.epoch`.
    """
    if rule == "last":
        return len(validations) - 1
    losses = [math.inf if each.facts["val_loss"] is None else each.facts["val_loss"] for each in validations]
    return min(range(len(losses)), key=lambda epoch: (losses[epoch], epoch))
