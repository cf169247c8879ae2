"""Schedules of recurring runs in KFP: create or replace, remove and list them."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Any

from spin_components.errors import ClusterAccessError, ClusterError, ConfigError
from spin_pipeline.cluster.client import Api, named, refused_with
from spin_pipeline.cluster.launcher import launcher
from spin_pipeline.cluster.package import Version, experiment_id, upload
from spin_pipeline.cluster.submission import Submission

_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_FIELD = re.compile(r"[0-9A-Za-z*/,?#-]+")


@dataclass(frozen=True, slots=True)
class Trigger:
    """When a schedule starts a run: by a cron expression or by an interval.

    Attributes:
        cron: six fields, seconds first; empty for an interval.
        every_s: interval in seconds; 0 for cron.
    """

    cron: str = ""
    every_s: int = 0

    def __str__(self) -> str:
        return f"cron {self.cron}" if self.cron else f"every {self.every_s} s"


def parse_cron(text: str) -> Trigger:
    """Parse a cron expression of the usual five fields, or of KFP's six.

    KFP accepts five fields but reads the first as seconds: `0 3 * * 1` would mean every hour in January.

    Raises:
        ConfigError: the number of fields is not 5 or 6, or a field is invalid.
    """
    fields = text.split()
    if len(fields) not in (5, 6) or not all(_FIELD.fullmatch(field) for field in fields):
        raise ConfigError(
            f"--cron {text!r}: expected minute, hour, day of month, month, day of week, like '0 3 * * 1' for Mondays "
            "at 3, or six fields with the second first"
        )
    *rest, weekday = ["0", *fields][-6:]
    return Trigger(cron=" ".join([*rest, re.sub(r"\b7\b", "0", weekday)]))


def parse_interval(text: str) -> Trigger:
    """Parse an interval such as `90`, `90s`, `30m`, `6h` or `7d`.

    Raises:
        ConfigError: the text is no interval, or 0.
    """
    match = re.fullmatch(r"(\d+)([smhd]?)", text.strip())
    every_s = int(match[1]) * _UNITS_S[match[2]] if match else 0
    if every_s < 1:
        raise ConfigError(f"--every {text!r}: expected a time such as 30m, 6h or 7d")
    return Trigger(every_s=every_s)


def schedules(api: Api, name: str = "") -> list[Any]:
    """KFP's recurring runs, all of them or those with a name."""
    by_name = {"filter": named(name)} if name else {}
    by_namespace = {"namespace": api.namespace} if api.namespace else {}
    list_page = api.client.recurring_runs.recurring_run_service_list_recurring_runs
    listed = api.pages("listing schedules", list_page, "recurring_runs", **by_name, **by_namespace)
    return [schedule for schedule in listed if not name or schedule.display_name == name]


def set_schedule(
    api: Api, name: str, submission: Submission, trigger: Trigger, *, pod_endpoint: str = ""
) -> tuple[str, str]:
    """Create the schedule, replacing all others of its name.

    The new schedule is created disabled, the old ones are disabled and deleted, then the new one is enabled. So no two
    are ever enabled, and an interrupted command can be repeated.

    Args:
        api: the KFP API.
        name: of the schedule.
        submission: submission of each run; its `schedule` is set to the name.
        trigger: when runs start.
        pod_endpoint: address of the KFP API for pods; empty for the default service.

    Returns: KFP's id of the schedule, and `set`, `replaced` or `unchanged`.
    """
    version = upload(api, f"{submission.pipeline_name}-schedule", launcher(submission.settings.cluster))
    body = _body(api, name, submission, trigger, version, pod_endpoint)
    before = schedules(api, name)
    if len(before) == 1 and _is_same(before[0], body):
        return str(before[0].recurring_run_id), "unchanged"
    body.mode = "DISABLE"
    schedule_id = _create(api, body)
    for old in before:
        _remove(api, str(old.recurring_run_id))
    api.call(
        "switching the schedule on", api.client.recurring_runs.recurring_run_service_enable_recurring_run, schedule_id
    )
    return schedule_id, "replaced" if before else "set"


def remove_schedule(api: Api, name: str) -> int:
    """Remove all schedules of a name; returns their number. Runs that they have started go on."""
    existing = schedules(api, name)
    for schedule in existing:
        _remove(api, str(schedule.recurring_run_id))
    return len(existing)


def trigger_of(schedule: Any) -> Trigger:
    """The trigger of one of KFP's recurring runs."""
    if not schedule.trigger:
        return Trigger()
    cron, periodic = schedule.trigger.cron_schedule, schedule.trigger.periodic_schedule
    return Trigger(
        cron=cron.cron if cron and cron.cron else "",
        every_s=int(periodic.interval_second or 0) if periodic else 0,
    )


def _body(api: Api, name: str, submission: Submission, trigger: Trigger, version: Version, pod_endpoint: str) -> Any:
    import kfp_server_api as kfp

    when = (
        kfp.V2beta1Trigger(cron_schedule=kfp.V2beta1CronSchedule(cron=trigger.cron))
        if trigger.cron
        else kfp.V2beta1Trigger(periodic_schedule=kfp.V2beta1PeriodicSchedule(interval_second=str(trigger.every_s)))
    )
    parameters = {"order": submission.of_schedule(name).as_json(), "endpoint": pod_endpoint, "namespace": api.namespace}
    return kfp.V2beta1RecurringRun(
        display_name=name,
        description=f"spin-pipeline schedule, {uuid.uuid4().hex}",
        experiment_id=experiment_id(api, submission.experiment_name),
        pipeline_version_reference=kfp.V2beta1PipelineVersionReference(
            pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id
        ),
        runtime_config=kfp.V2beta1RuntimeConfig(parameters=parameters),
        service_account=submission.service_account or None,
        trigger=when,
        mode="ENABLE",
        max_concurrency="1",
        no_catchup=True,
    )


def _is_same(existing: Any, body: Any) -> bool:
    """Whether an existing schedule equals a new one, which may leave the service account to KFP."""
    account = body.service_account or existing.service_account
    return _content(existing) == _content(body) and (existing.service_account or None) == (account or None)


def _content(schedule: Any) -> tuple[Any, ...]:
    version, config = schedule.pipeline_version_reference, schedule.runtime_config
    return (
        trigger_of(schedule),
        version.pipeline_version_id if version else "",
        dict(config.parameters or {}) if config else {},
        schedule.mode,
        schedule.experiment_id,
    )


def _create(api: Api, body: Any) -> str:
    """Create a schedule; if the response is lost, look it up by the unique id in its description."""
    operation = api.client.recurring_runs.recurring_run_service_create_recurring_run
    what = f"creating the schedule {body.display_name}"
    try:
        created = api.call(what, operation, recurring_run=body, tries=1)
    except ClusterError:
        matching = [one for one in schedules(api, body.display_name) if one.description == body.description]
        created = matching[0] if matching else api.call(what, operation, recurring_run=body)
    if not created.recurring_run_id:
        raise ClusterError(f"{what}: the response has no id; is this KFP 2.15 or newer?")
    return str(created.recurring_run_id)


def _remove(api: Api, schedule_id: str) -> None:
    service = api.client.recurring_runs
    for operation in (
        service.recurring_run_service_disable_recurring_run,
        service.recurring_run_service_delete_recurring_run,
    ):
        try:
            api.call("removing the schedule", operation, schedule_id)
        except ClusterAccessError as error:
            if refused_with(error) != 404:  # it was deleted in the meantime
                raise
