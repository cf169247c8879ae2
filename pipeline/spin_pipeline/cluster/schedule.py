"""Recurring runs: set under a name, replaced so that no two are ever on, removed, listed."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Any

from spin_components.errors import ClusterAccessError, ClusterError, ConfigError
from spin_pipeline.cluster.client import Api, named, refused_with
from spin_pipeline.cluster.launcher import launcher
from spin_pipeline.cluster.order import Order
from spin_pipeline.cluster.package import Version, experiment_id, upload

_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_FIELD = re.compile(r"[0-9A-Za-z*/,?#-]+")


@dataclass(frozen=True, slots=True)
class Trigger:
    """When: a cron expression of six fields, seconds first, or seconds between two runs.

    Attributes:
        cron: empty where the interval counts.
        every_s: 0 where cron counts.
    """

    cron: str = ""
    every_s: int = 0

    def __str__(self) -> str:
        return f"cron {self.cron}" if self.cron else f"every {self.every_s} s"


def parse_cron(text: str) -> Trigger:
    """The usual five fields, or KFP's six.

    KFP reads five fields too, but takes the first for seconds, so that `0 3 * * 1` would be each hour of each January.

    Raises:
        ConfigError: it has another number of fields, or a field no cron has.
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
    """`90`, `90s`, `30m`, `6h` or `7d`.

    Raises:
        ConfigError: it is none of these, or 0.
    """
    found = re.fullmatch(r"(\d+)([smhd]?)", text.strip())
    every_s = int(found[1]) * _UNITS_S[found[2]] if found else 0
    if every_s < 1:
        raise ConfigError(f"--every {text!r}: expected a time such as 30m, 6h or 7d")
    return Trigger(every_s=every_s)


def schedules(api: Api, name: str = "") -> list[Any]:
    """KFP's recurring runs, all or those of a name."""
    wanted = {"filter": named(name)} if name else {}
    where = {"namespace": api.namespace} if api.namespace else {}
    listing = api.client.recurring_runs.recurring_run_service_list_recurring_runs
    found = api.pages("listing schedules", listing, "recurring_runs", **wanted, **where)
    return [schedule for schedule in found if not name or schedule.display_name == name]


def set_schedule(api: Api, name: str, order: Order, trigger: Trigger, *, pod_endpoint: str = "") -> tuple[str, str]:
    """Have one schedule of this name, with this content, and none other.

    The new one is made off, the old ones are switched off and removed, and only then the new one goes on: so two are
    never on, and whatever interrupts this, the same command mends.

    Args:
        api: connected.
        name: of the schedule.
        order: of each run; its own `schedule` is set to the name.
        trigger: when.
        pod_endpoint: of KFP as pods reach it; empty for the usual service.

    Returns: the schedule's id, and what was done: `set`, `replaced` or `unchanged`.
    """
    version = upload(api, f"{order.pipeline_name}-schedule", launcher(order.settings.cluster))
    body = _body(api, name, order, trigger, version, pod_endpoint)
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
    """Remove every schedule of a name; returns how many there were. Runs that it has started go on."""
    found = schedules(api, name)
    for schedule in found:
        _remove(api, str(schedule.recurring_run_id))
    return len(found)


def trigger_of(schedule: Any) -> Trigger:
    """When a schedule of KFP runs."""
    if not schedule.trigger:
        return Trigger()
    cron, periodic = schedule.trigger.cron_schedule, schedule.trigger.periodic_schedule
    return Trigger(
        cron=cron.cron if cron and cron.cron else "",
        every_s=int(periodic.interval_second or 0) if periodic else 0,
    )


def _body(api: Api, name: str, order: Order, trigger: Trigger, version: Version, pod_endpoint: str) -> Any:
    import kfp_server_api as kfp

    when = (
        kfp.V2beta1Trigger(cron_schedule=kfp.V2beta1CronSchedule(cron=trigger.cron))
        if trigger.cron
        else kfp.V2beta1Trigger(periodic_schedule=kfp.V2beta1PeriodicSchedule(interval_second=str(trigger.every_s)))
    )
    parameters = {"order": order.of_schedule(name).as_json(), "endpoint": pod_endpoint, "namespace": api.namespace}
    return kfp.V2beta1RecurringRun(
        display_name=name,
        description=f"spin-pipeline schedule, {uuid.uuid4().hex}",
        experiment_id=experiment_id(api, order.experiment_name),
        pipeline_version_reference=kfp.V2beta1PipelineVersionReference(
            pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id
        ),
        runtime_config=kfp.V2beta1RuntimeConfig(parameters=parameters),
        service_account=order.service_account or None,
        trigger=when,
        mode="ENABLE",
        max_concurrency="1",
        no_catchup=True,
    )


def _is_same(found: Any, body: Any) -> bool:
    """Whether a schedule of KFP says what another would; KFP fills in a service account where none is named."""
    account = body.service_account or found.service_account
    return _says(found) == _says(body) and (found.service_account or None) == (account or None)


def _says(schedule: Any) -> tuple[Any, ...]:
    version, config = schedule.pipeline_version_reference, schedule.runtime_config
    return (
        trigger_of(schedule),
        version.pipeline_version_id if version else "",
        dict(config.parameters or {}) if config else {},
        schedule.mode,
        schedule.experiment_id,
    )


def _create(api: Api, body: Any) -> str:
    """Create it; where the answer is lost, look for it by its mark."""
    operation = api.client.recurring_runs.recurring_run_service_create_recurring_run
    what = f"creating the schedule {body.display_name}"
    try:
        made = api.call(what, operation, recurring_run=body, tries=1)
    except ClusterError:
        found = [one for one in schedules(api, body.display_name) if one.description == body.description]
        made = found[0] if found else api.call(what, operation, recurring_run=body)
    if not made.recurring_run_id:
        raise ClusterError(f"{what}: the answer has no id; is this KFP 2.15 or newer?")
    return str(made.recurring_run_id)


def _remove(api: Api, schedule_id: str) -> None:
    service = api.client.recurring_runs
    for operation in (
        service.recurring_run_service_disable_recurring_run,
        service.recurring_run_service_delete_recurring_run,
    ):
        try:
            api.call("removing the schedule", operation, schedule_id)
        except ClusterAccessError as error:
            if refused_with(error) != 404:  # somebody was faster
                raise
