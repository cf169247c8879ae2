"""State of a tracker in the run's storage, so that a later process continues the same tracker run."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from spin_components.errors import IntegrityError
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.base import RunStore

Branch = Literal["self-play", "warm-up", "control"]
"""What metrics are of. Each branch has a run of its own at a tracker, with the same names of metrics, so that the
tracker draws their curves over each other: a control's steps are counted as those of the iterations beside it."""


class TrackerState:
    """A JSON object `tracking/NAME.json`, valid for one target only.

    Args:
        run: the run that stores it.
        name: name of the tracker.
        target: server and project; the stored state of another target is ignored.
        branch: what the tracker's run is of.
    """

    def __init__(self, run: RunStore, name: str, target: dict[str, str], branch: Branch = "self-play") -> None:
        own = name if branch == "self-play" else f"{name}-{branch}"
        self._run, self._key, self._target = run, f"{layout.TRACKING}/{own}.json", target

    def read(self) -> dict[str, Any]:
        """Read the stored values; empty if there are none, or if they are damaged or of another target."""
        if not self._run.exists(self._key):
            return {}
        try:
            values = self._run.read_json(self._key)
        except IntegrityError:
            return {}
        return values if values.pop("target", None) == self._target else {}

    def write(self, values: dict[str, Any]) -> None:
        """Replace the stored values."""
        self._run.write_json(self._key, {"target": self._target, **values})


Series = Literal["train", "validation", "iteration", "evaluation"]


AttemptState = Literal["running", "ended", "failed"]
"""State of the attempt when a step closes its trackers: more steps follow, it was the last one, or it failed."""


@dataclass(frozen=True, slots=True)
class Point:
    """Metrics of one optimizer step.

    Attributes:
        series: `train` for every step, `validation` for steps with a val_loss, `iteration` and `evaluation` for the
            last step of an iteration.
        step: number of optimizer steps since the start of the run.
        values: metrics by name, finite.
        time: seconds since 1970.
    """

    series: Series
    step: int
    values: Mapping[str, float]
    time: float = field(default_factory=time.time)


class Tracker(Protocol):
    """Interface of a tracker; its methods may raise any exception.

    A resumed attempt may log steps that were logged before: a tracker replaces or skips them.
    """

    def log(self, points: Collection[Point]) -> None:
        """Log points; those of one series are ordered by step."""

    def flush(self) -> None:
        """Send or write all logged points."""

    def close(self, state: AttemptState) -> None:
        """Flush, set the state of the tracker's run, and release resources."""


def branch_of(number: int) -> Branch:
    """The branch of an iteration, of the base model (`layout.BASE`), of the warm-up or of a control, by its number."""
    if number == layout.WARM_UP:
        return "warm-up"
    return "self-play" if layout.controlled(number) is None else "control"


def run_name(settings: Settings, branch: Branch) -> str:
    """Name of a tracker's run."""
    return settings.run.name if branch == "self-play" else f"{settings.run.name} {branch}"


def flat(settings: Settings) -> dict[str, Any]:
    """Return all settings but `[tracking]`, by `section.key`."""
    sections = settings.model_dump(mode="json", exclude={"tracking"})
    return {f"{section}.{key}": value for section, table in sections.items() for key, value in table.items()}
