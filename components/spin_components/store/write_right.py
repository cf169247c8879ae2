"""The right of a step to write: no later attempt has taken the run over, and the step was not begun again."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from spin_components.errors import BusyError
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.lease import Lease, read_lease

TAKEN = re.compile(rf"{layout.LEASES}/(\d{{8}})\.json")
"""File of an attempt that took the run over."""
AT_WORK = re.compile(rf"{layout.LEASES}/(\d{{8}})/(.+)\.(\d{{4}})-([0-9a-f]{{8}})\.json")
"""File of a step at work."""


class WriteRight(BaseModel):
    """What a step's right to write depends on; processes that work for the step check it as the step does.

    Attributes:
        owner: id of the attempt.
        number: of the attempt among those at the run.
        label: name of the step within the attempt.
        key: of the file that says that the step is at work.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner: str
    number: int
    label: str
    key: str

    def check(self, run: RunStore) -> None:
        """Check that neither another attempt nor a later try of this step has begun; called before every write.

        Raises:
            BusyError: one has.
        """
        keys = run.sizes(layout.LEASES)
        if highest_number(keys) > self.number:
            raise taken_over(run, self.owner, read_lease(run))
        if max(tries(keys, self.number, self.label), default="") != self.key:
            raise BusyError(
                f"step {self.label} of attempt {self.owner} was begun again in another process, which goes on with "
                f"it on {run.uri}; nothing more is written here"
            )


def taken_over(run: RunStore, owner: str, lease: Lease | None) -> BusyError:
    """The error of an attempt where another one has the run."""
    other = lease.owner if lease and lease.owner != owner else "with a higher number"
    return BusyError(
        f"attempt {other} has taken {run.uri} over from this one, whose lease had expired; "
        "nothing more is written here. Once the other attempt has ended, the same command resumes the run"
    )


def highest_number(keys: Iterable[str]) -> int:
    """The highest number of an attempt that has taken the run over; 0 for none."""
    return max((int(match[1]) for key in keys if (match := TAKEN.fullmatch(key))), default=0)


def tries(keys: Iterable[str], number: int, label: str) -> list[str]:
    """The files of the tries of a step, in order."""
    matches = [match for key in keys if (match := AT_WORK.fullmatch(key))]
    return sorted(match[0] for match in matches if int(match[1]) == number and match[2] == label)
