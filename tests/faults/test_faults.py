"""Faults: each run of two epochs ends with the undisturbed result, possibly after an error that names a location.

Faults up to the first epoch are in `test_faults_in_one_epoch.py`.
"""

from __future__ import annotations

import pytest

from faults.file_ground import FileGround
from faults.fixed import IN_TWO_EPOCHS
from faults.ground import Ground, Tally
from faults.plans import Fault, number_of_faults, random_fault


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize with the fixed list, or with the seeds of random faults."""
    if "drawn" in metafunc.fixturenames:
        metafunc.parametrize("drawn", range(number_of_faults()) or IN_TWO_EPOCHS, ids=str)


def test_a_fault_does_not_change_the_result(drawn: Fault | int, request: pytest.FixtureRequest, tally: Tally) -> None:
    ground: Ground | FileGround = request.getfixturevalue("ground")
    if isinstance(drawn, int):
        assert isinstance(ground, Ground)
        drawn = random_fault(drawn, ground.requests, ground.keys)
    if drawn.storage == "files":
        ground = request.getfixturevalue("file_ground")
    tally(drawn.group, ground.suffer(drawn))
