"""Limits of this machine: its cores, and what its environment variables allow."""

from __future__ import annotations

import math
import os

from spin_components.errors import ConfigError


def num_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def seconds(name: str, default: float) -> float:
    """A time above 0 from a variable.

    Raises:
        ConfigError: it is none.
    """
    return _number(name, default, "a number of seconds above 0", least=math.ulp(0.0))


def gibibytes(name: str, default: float) -> int:
    """A size of 0 or more from a variable that counts GiB, in bytes.

    Raises:
        ConfigError: it is none.
    """
    return int(_number(name, default, "a number of GiB, 0 or more", least=0.0) * 2**30)


def _number(name: str, default: float, expected: str, *, least: float) -> float:
    text = os.environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= least):
        raise ConfigError(f"{name} = {text!r}: expected {expected}")
    return value
