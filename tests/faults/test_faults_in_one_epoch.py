"""Faults up to the first epoch, in runs of one epoch: each run ends with the undisturbed result."""

from __future__ import annotations

import pytest

from faults.fixed import IN_ONE_EPOCH
from faults.ground import Ground, Tally
from faults.plans import Fault


@pytest.mark.parametrize("drawn", IN_ONE_EPOCH, ids=str)
def test_a_fault_does_not_change_the_result(drawn: Fault, one_epoch_ground: Ground, tally: Tally) -> None:
    tally(drawn.group, one_epoch_ground.suffer(drawn))
