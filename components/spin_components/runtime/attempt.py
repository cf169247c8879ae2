"""An attempt at a run as its steps see it: the run's settings, and what `prepare` recorded for this attempt."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from spin_components.errors import BusyError
from spin_components.settings.attempt import EvaluationSettings, HardwareSettings, PlacementSettings, TrackingSettings
from spin_components.settings.inheritance import FIRST
from spin_components.settings.selection import SelectionSettings
from spin_components.settings.settings import Settings
from spin_components.settings.training import ControlSettings
from spin_components.store import layout
from spin_components.store.base import RunStore


def read_settings(run: RunStore, hardware: HardwareSettings) -> Settings:
    """Return the settings that `prepare` recorded for a run, with the `[hardware]` of this attempt.

    A run that began before `generation.block_size` existed goes on as it began.
    """
    tables = run.read_json(layout.RUN)["settings"]
    tables["generation"] = FIRST["generation"] | tables.get("generation", {})
    return Settings.model_validate(tables).model_copy(update={"hardware": hardware})


@dataclass
class Attempt:
    """The record of an attempt, read from storage once.

    Attributes:
        run: the run's storage.
        hardware: `[hardware]` of the attempt.
        number: of the attempt among those at the run; 0 if it is unknown.
        recorded: content of `attempt.json`, where it has been read already; else it is read when it is needed.
    """

    run: RunStore
    hardware: HardwareSettings
    number: int = 0
    recorded: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def settings(self) -> Settings:
        """Settings of the run, with the `[hardware]` of this attempt."""
        return read_settings(self.run, self.hardware)

    @cached_property
    def evaluation(self) -> EvaluationSettings:
        """This attempt's `[evaluation]`."""
        return EvaluationSettings.model_validate(self._record.get("evaluation", {}))

    @cached_property
    def control(self) -> ControlSettings:
        """This attempt's `[control]`."""
        return ControlSettings.model_validate(self._record.get("control", {}))

    @cached_property
    def tracking(self) -> TrackingSettings:
        """This attempt's `[tracking]`."""
        return TrackingSettings.model_validate(self._record.get("tracking", {}))

    @cached_property
    def selection(self) -> SelectionSettings:
        """This attempt's `[selection]`."""
        return SelectionSettings.model_validate(self._record.get("selection", {}))

    @cached_property
    def placement(self) -> PlacementSettings:
        """This attempt's `[placement]`."""
        return PlacementSettings.model_validate(self._record.get("placement", {}))

    @property
    def max_iterations(self) -> int:
        """Number of iterations of this attempt."""
        return int(self._record.get("max_iterations", self.settings.spin.max_iterations))

    @property
    def deadline(self) -> float | None:
        """Time at which the attempt stops, in seconds since 1970; None for no limit."""
        deadline: float | None = self._record["deadline"]
        return deadline

    @cached_property
    def _record(self) -> dict[str, Any]:
        record = self.recorded or self.run.read_json(layout.ATTEMPT)
        if self.number and record.get("number", self.number) != self.number:
            raise BusyError(
                f"{self.run.uri_of(layout.ATTEMPT)} is of attempt {record['number']} at this run, expected "
                f"{self.number}: a late write of another attempt has replaced it; run the same command again"
            )
        return record
