"""State of a tracker in the run's storage, so that a later process continues the same tracker run."""

from __future__ import annotations

from typing import Any

from spin_components.errors import IntegrityError
from spin_components.store import layout
from spin_components.store.run import RunStore


class TrackerState:
    """A JSON object `tracking/NAME.json`, valid for one target only.

    Args:
        run: the run that stores it.
        name: name of the tracker.
        target: server and project; the stored state of another target is ignored.
    """

    def __init__(self, run: RunStore, name: str, target: dict[str, str]) -> None:
        self._run, self._key, self._target = run, f"{layout.TRACKING}/{name}.json", target

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
