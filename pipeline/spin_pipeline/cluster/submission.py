"""A submission to a cluster: the configuration, its names in KFP, and its relation to earlier runs."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

from spin_components.data.builtin import is_builtin
from spin_components.errors import ConfigError
from spin_components.prepare.input_checks import named_sources
from spin_components.store.addresses import check_address, parse_address, scheme_of
from spin_pipeline.config import check_settings
from spin_pipeline.deploy.cluster_settings import Configuration

TIME = "{time}"
"""Placeholder in `run.uri` for the time of submission, which gives each run separate storage."""
ID = "{id}"
"""Placeholder in `run.uri` for KFP's id of the run; filled in by the run's tasks."""


@dataclass(frozen=True, slots=True)
class Submission:
    """One submission, or the template of a schedule's submissions.

    Attributes:
        settings: the configuration; `run.uri` may contain `TIME`.
        pipeline: name of the pipeline in KFP; empty for `run.name`.
        experiment: name of the experiment; empty for the pipeline's.
        run_name: shown in the UI; empty for the pipeline's name and the time.
        service_account: service account of the pods; empty for KFP's default.
        continue_from: a run or a folder of runs whose best model is the base model; empty for `model.base`.
        once_for_data: whether to refuse data that an earlier run has trained on.
        schedule: name of the schedule that it belongs to; empty for none.
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
        """Folder of the earlier runs; empty if it is not configured."""
        if self.continue_from:
            return self.continue_from
        before, placeholder, _ = self.settings.run.uri.replace(ID, TIME).partition(TIME)
        return before.rpartition("/")[0] if placeholder else ""

    def as_json(self) -> dict[str, Any]:
        """JSON values for a KFP parameter; see `from_json`."""
        names = [field.name for field in fields(self) if field.name != "settings"]
        return {name: getattr(self, name) for name in names} | {"settings": self.settings.model_dump(mode="json")}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Submission:
        """Read the values of `as_json`.

        Raises:
            ConfigError: this version does not accept the settings.
        """
        return cls(**{**values, "settings": check_settings(values["settings"], source="the schedule's settings")})

    def check(self) -> None:
        """Check that pods can use the addresses, without connecting to anything.

        Raises:
            ConfigError: an address is invalid, missing or local to this machine.
        """
        settings = self.settings
        if not settings.run.uri:
            raise ConfigError("run.uri is empty; set the run's storage with --run-uri s3://bucket/prefix")
        for what, uri in {"run.uri": settings.run.uri, "--continue-from": self.continue_from}.items():
            if uri and scheme_of(uri) != "s3":
                parse_address(uri, what=what)
                raise ConfigError(
                    f"{what} = {uri!r} is on this machine, where the pods of a cluster cannot read it. Use object "
                    "storage: s3://bucket/prefix"
                )
            if uri:
                parse_address(uri.replace(TIME, "0").replace(ID, "0"), what=what)
        sources = {f"data.{name}": uri for name, uri in named_sources(settings).items()}
        sources |= {"evaluation.task_files": settings.evaluation.task_files} if settings.evaluation.task_files else {}
        sources |= {"data.chat_template": settings.data.chat_template_file} if settings.data.chat_template_file else {}
        for what, uri in {"model.base": settings.model.base, **sources}.items():
            if is_builtin(uri):
                continue
            check_address(uri, what=what)
            if scheme_of(uri) == "file" and not uri.removeprefix("file://").startswith("/"):
                raise ConfigError(
                    f"{what} = {uri!r} is a relative path, which pods cannot read; use s3://…, hf://…, or the "
                    "absolute path of a folder in the images or on a mounted volume"
                )

    def at(self, moment: datetime) -> Submission:
        """A copy with the placeholder in `run.uri` and the name filled in for a time of submission."""
        stamp = moment.astimezone(UTC)
        uri = self.settings.run.uri.replace(TIME, stamp.strftime("%Y%m%dT%H%M%SZ"))
        run = self.settings.run.model_copy(update={"uri": uri})
        name = self.run_name or f"{self.pipeline_name} {stamp:%Y-%m-%d %H:%M:%S}"
        return replace(self, settings=self.settings.model_copy(update={"run": run}), run_name=name)

    def of_schedule(self, name: str) -> Submission:
        """A copy that belongs to a schedule."""
        return replace(self, schedule=name)

    def with_model(self, model: dict[str, Any]) -> Submission:
        """A copy with another base model; `model` has the changed values of `[model]`.

        Raises:
            ConfigError: a value is invalid.
        """
        overrides = [f"model.{name}={json.dumps(value)}" for name, value in model.items()]
        values = self.settings.model_dump(mode="json")
        return replace(self, settings=check_settings(values, overrides, source="the configuration"))
