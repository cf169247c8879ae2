"""Faults: their kinds, and the random choice of faults."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NUMBER = "SPIN_FAULTS"
"""Environment variable: number of random faults to run instead of the fixed list."""

STEPS = {
    "prepare": "",
    "validate-base": r"HEAD /bucket/run/base/validation\.json",
    "generate": r"HEAD /bucket/run/iterations/0/generations/00000\.json",
    "ref-logprob": r"HEAD /bucket/run/iterations/0/ref_logprobs/00000\.json",
    "train-epoch": r"HEAD /bucket/run/iterations/0/epochs/0/manifest\.json",
    "inside-epoch": r"GET .*prefix=run%2Fiterations%2F0%2Fepochs%2F0%2Fpartial%2F2%2Fpolicy",
    "validate": r"HEAD /bucket/run/iterations/0/epochs/0/validation\.json",
    "train-epoch-1": r"HEAD /bucket/run/iterations/0/epochs/1/manifest\.json",
    "checkpoint": r"HEAD /bucket/run/iterations/0/checkpoint\.json",
}
"""Steps that a run is resumed at, each with a pattern of the first request of the step."""

SECOND_EPOCH = ("train-epoch-1", "checkpoint")
"""Steps that come after, or deal with, a second epoch."""

NETWORK = (
    "drop", "slow down", "internal error", "delay", "cut request", "lose answer", "truncate answer", "flip answer",
    "flip request",
)  # fmt: skip
WORKER_KILLS = ("kill worker before", "kill worker in mid-request", "kill worker in mid-answer", "kill worker after")
SERVER_KILLS = ("kill server before", "kill server in mid-request", "kill server in mid-answer", "kill server after")
DAMAGE = ("flip", "truncate", "delete", "garble")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        kind: one of the above, or `kill worker at a moment`, `full disk`, `damage cache`, `silence`.
        step: the step to resume at, a key of `STEPS`; for a run in a folder, the file that triggers the fault.
        where: pattern of the request, or exact key, that is affected.
        skip: number of matching requests to pass first; for damage, the offset of the byte.
        times: number of affected requests.
        warm: whether the cache is kept.
        storage: `s3` or `files`.
        size: of a full disk, in KiB.
        moment_s: seconds until the kill, for a kill at a moment.
        mark: text after which a byte is flipped.
    """

    kind: str
    step: str = "prepare"
    where: str = ""
    skip: int = 0
    times: int = 1
    warm: bool = False
    storage: str = "s3"
    size: int = 0
    moment_s: float = 0.0
    mark: str = ""

    @property
    def group(self) -> str:
        """The kind, as counted in the summary."""
        if self.storage == "files":
            return f"{self.kind} (files)"
        return f"{self.kind} (storage)" if self.kind in DAMAGE else self.kind

    def __str__(self) -> str:
        where = re.sub(r"[^\w.-]+", "-", self.where.removeprefix("/bucket/run/")).strip("-")
        extra = "".join(
            f"-{value}" for value in (self.skip, self.size, self.moment_s, re.sub(r"\W", "", self.mark)) if value
        )
        return f"{self.group}@{self.step}:{where}{extra}".replace(" ", "-")


def number_of_faults() -> int:
    """Number of random faults to run instead of the fixed list; 0 for the list."""
    return int(os.environ.get(NUMBER) or 0)


def random_fault(number: int, requests: Sequence[tuple[str, str]], keys: Mapping[str, Sequence[str]]) -> Fault:
    """A random fault, at any request of the undisturbed run or to any object stored at the start of a step.

    Args:
        number: the seed.
        requests: those of the undisturbed run, each with the step that it belongs to.
        keys: stored keys at the start of each step.
    """
    chance = random.Random(number)
    step, warm = chance.choice(list(STEPS)), chance.random() < 0.5
    match chance.choices(["network", "worker", "server", "moment", "damage", "disk"], [40, 20, 8, 10, 17, 5])[0]:
        case "damage":
            step = chance.choice([name for name in STEPS if keys[name]])
            return Fault(chance.choice(DAMAGE), step, chance.choice(keys[step]), skip=chance.randrange(1 << 20))
        case "disk":
            return Fault("full disk", size=chance.randrange(200, 3500))
        case "moment":
            return Fault("kill worker at a moment", step, moment_s=round(chance.uniform(0.05, 3.0), 2), warm=warm)
        case drawn:
            kinds = {"network": NETWORK, "worker": WORKER_KILLS, "server": SERVER_KILLS}[drawn]
            step, request = chance.choice(requests)
            times = chance.choice([1, 1, 2, 4])
            return Fault(chance.choice(kinds), step, pattern_of(request), times=times, warm=warm)


def pattern_of(request: str) -> str:
    """A pattern for a request, without the parts that differ between runs."""
    pattern = re.escape(request)
    pattern = re.sub(r"uploadId=.*", "uploadId=", pattern)
    pattern = re.sub(r"probe\\-[0-9a-f]+", "probe", pattern)
    pattern = re.sub(r"events/\d+\\-(.*?)\\-\d+\\-(\d{5})", r"events/\\d+-\1-\\d+-\2", pattern)
    return f"^{pattern}"
