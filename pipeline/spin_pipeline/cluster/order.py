"""What is to be run on a cluster: a configuration, under which names, and what is to be done about earlier runs."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

from spin_components.errors import ConfigError
from spin_components.prepare.builtin import is_builtin
from spin_components.prepare.checks import named_sources
from spin_components.store.addresses import check_address, parse_address, scheme_of
from spin_pipeline.cluster_settings import Configuration
from spin_pipeline.config import check_settings

TIME = "{time}"
"""In `run.uri`: the time of each submission, so that each has storage of its own."""


@dataclass(frozen=True, slots=True)
class Order:
    """One submission, or each submission of a schedule.

    Attributes:
        settings: the configuration; `run.uri` may contain `TIME`.
        pipeline: name of the pipeline in KFP; empty for `run.name`.
        experiment: name of the experiment; empty for the pipeline's.
        run_name: shown in the UI; empty for the pipeline's name and the time.
        service_account: of the pods; empty for KFP's default.
        continue_from: a run, or a folder of runs, whose best iteration is the base model; empty for `model.base`.
        once_for_data: whether to refuse data that a run has trained on.
        schedule: name of the schedule that it belongs to.
    """

    settings: Configuration
    pipeline: str = ""
    experiment: str = ""
    run_name: str = ""
    service_account: str = ""
    continue_from: str = ""
    once_for_data: bool = False
    schedule: str = ""

    @property
    def pipeline_name(self) -> str:
        return self.pipeline or self.settings.run.name

    @property
    def experiment_name(self) -> str:
        return self.experiment or self.pipeline_name

    @property
    def runs_folder(self) -> str:
        """Below which earlier runs lie; empty where that is not said."""
        if self.continue_from:
            return self.continue_from
        before, time, _ = self.settings.run.uri.partition(TIME)
        return before.rpartition("/")[0] if time else ""

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a parameter of KFP; see `from_json`."""
        names = [field.name for field in fields(self) if field.name != "settings"]
        return {name: getattr(self, name) for name in names} | {"settings": self.settings.model_dump(mode="json")}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Order:
        """What `as_json` gave.

        Raises:
            ConfigError: the settings are none for this version.
        """
        return cls(**{**values, "settings": check_settings(values["settings"], source="the schedule's settings")})

    def check(self) -> None:
        """Refuse what no pod could use; nothing is contacted.

        Raises:
            ConfigError: an address is of this machine, or none.
        """
        settings = self.settings
        if not settings.run.uri:
            raise ConfigError("run.uri is empty; say where the run shall lie with --run-uri s3://bucket/prefix")
        for what, uri in {"run.uri": settings.run.uri, "--continue-from": self.continue_from}.items():
            if uri and scheme_of(uri) != "s3":
                parse_address(uri, what=what)
                raise ConfigError(
                    f"{what} = {uri!r} lies on this machine; the pods of a cluster share no folder with it. Name "
                    "object storage: s3://bucket/prefix"
                )
            if uri:
                parse_address(uri.replace(TIME, "0"), what=what)
        sources = {f"data.{name}": uri for name, uri in named_sources(settings).items()}
        sources |= {"evaluation.task_files": settings.evaluation.task_files} if settings.evaluation.task_files else {}
        for what, uri in {"model.base": settings.model.base, **sources}.items():
            if is_builtin(uri):
                continue
            check_address(uri, what=what)
            if scheme_of(uri) == "file" and not uri.removeprefix("file://").startswith("/"):
                raise ConfigError(
                    f"{what} = {uri!r} is a path below this folder, which no pod has; use s3://…, hf://…, or the "
                    "absolute path of a folder in the images or on a mounted volume"
                )

    def at(self, moment: datetime) -> Order:
        """The order as it is placed at a moment: with an address for its run, and a name."""
        stamp = moment.astimezone(UTC)
        uri = self.settings.run.uri.replace(TIME, stamp.strftime("%Y%m%dT%H%M%SZ"))
        run = self.settings.run.model_copy(update={"uri": uri})
        name = self.run_name or f"{self.pipeline_name} {stamp:%Y-%m-%d %H:%M:%S}"
        return replace(self, settings=self.settings.model_copy(update={"run": run}), run_name=name)

    def of_schedule(self, name: str) -> Order:
        """The order as a schedule places it."""
        return replace(self, schedule=name)

    def with_model(self, model: dict[str, Any]) -> Order:
        """The order with another base model; `model` is what changes in `[model]`.

        Raises:
            ConfigError: it cannot be one.
        """
        overrides = [f"model.{name}={json.dumps(value)}" for name, value in model.items()]
        values = self.settings.model_dump(mode="json")
        return replace(self, settings=check_settings(values, overrides, source="the configuration"))
