"""What a tracker keeps in the run's storage to go on where an earlier process ended."""

from __future__ import annotations

from typing import Any

from spin_components.errors import IntegrityError
from spin_components.store import layout
from spin_components.store.run import RunStore


class Record:
    """One small JSON object below `tracking/`, good for one target only.

    Args:
        run: where it lies.
        name: of the tracker.
        target: which server and project it is about; a record of another target counts for nothing.
    """

    def __init__(self, run: RunStore, name: str, target: dict[str, str]) -> None:
        self._run, self._key, self._target = run, f"{layout.TRACKING}/{name}.json", target

    def read(self) -> dict[str, Any]:
        """What was written last; empty before that, and where it is damaged."""
        if not self._run.exists(self._key):
            return {}
        try:
            found = self._run.read_json(self._key)
        except IntegrityError:
            return {}
        return found if found.pop("target", None) == self._target else {}

    def write(self, values: dict[str, Any]) -> None:
        """Replace it."""
        self._run.write_json(self._key, {"target": self._target, **values})
