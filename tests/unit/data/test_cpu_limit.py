from __future__ import annotations

import re
import time

import pytest

from spin_components.data.cpu_limit import CpuLimitError, cpu_limit


def spend(seconds: float) -> None:
    """Use this much processor time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_a_block_that_catches_the_error_and_goes_on_is_stopped_again() -> None:
    caught = []
    with pytest.raises(CpuLimitError, match=r"still running after 0\.05 s"), cpu_limit(0.05):
        try:
            spend(60)
        except ValueError as error:
            caught.append(error)
        re.sub(r"(a+)+$!", "", "a" * 40)
    assert len(caught) == 1


def test_a_block_within_its_limit_is_not_stopped_nor_what_follows() -> None:
    with cpu_limit(0.05):
        pass
    spend(0.2)
    with cpu_limit(60):
        spend(0.2)


def test_a_block_within_another_leaves_its_limit_in_force() -> None:
    with pytest.raises(CpuLimitError, match=r"still running after 0\.1 s"), cpu_limit(0.1):
        with cpu_limit(60):
            pass
        re.sub(r"(a+)+$!", "", "a" * 40)
    with pytest.raises(CpuLimitError, match=r"still running after 0\.1 s"), cpu_limit(0.1):
        with pytest.raises(CpuLimitError, match=r"still running after 0\.05 s"), cpu_limit(0.05):
            re.sub(r"(a+)+$!", "", "a" * 40)
        spend(60)
