"""`spin-pipeline schedule`: manage recurring runs on a cluster."""

from __future__ import annotations

import argparse
from typing import Any

from spin_components.errors import ConfigError
from spin_pipeline.commands.options import add_config, add_submission, add_target, api_of, submission_of
from spin_pipeline.watch.console import plain_console


def add(commands: Any, exit_codes: str) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "schedule",
        help="create, replace, remove or list schedules of recurring runs on a cluster",
        epilog=f"Each time, the cluster runs the equivalent of `submit --wait` with the same options. {exit_codes}",
    )
    parser.add_argument("--name", metavar="NAME", help="name of the schedule; an existing one is replaced")
    parser.add_argument(
        "--cron",
        metavar="EXPR",
        help="cron expression; '0 3 * * 1' is Mondays at 3, in KFP's time zone (UTC unless configured)",
    )
    parser.add_argument("--every", metavar="TIME", help="interval instead of --cron: 30m, 6h, 7d")
    parser.add_argument("--remove", action="store_true", help="remove the schedule; runs that it has started go on")
    parser.add_argument("--list", action="store_true", help="list all schedules, or those called --name")
    parser.add_argument(
        "--pod-endpoint", metavar="URL", default="", help="address of the KFP API for pods; default: its service"
    )
    add_config(parser)
    add_target(parser)
    add_submission(parser)
    parser.set_defaults(do=schedule)


def schedule(options: argparse.Namespace) -> int:
    """List, remove or create a schedule, as the options say."""
    from spin_pipeline.cluster import schedule as cluster

    if options.list and not options.remove:
        return _list(options)
    if not options.name:
        raise ConfigError("the schedule has no name; add --name NAME")
    if options.remove:
        count = cluster.remove_schedule(api_of(options), options.name)
        if not count:
            raise ConfigError(f"there is no schedule {options.name}; see `spin-pipeline schedule --list`")
        _print(f"removed {options.name}")
        return 0
    if bool(options.cron) == bool(options.every):
        raise ConfigError("expected either --cron EXPR or --every TIME")
    trigger = cluster.parse_cron(options.cron) if options.cron else cluster.parse_interval(options.every)
    submission = submission_of(options)
    api = api_of(options)
    schedule_id, what = cluster.set_schedule(api, options.name, submission, trigger, pod_endpoint=options.pod_endpoint)
    _print(f"{what}: {options.name}, {trigger}\n{api.target.ui}/#/recurringrun/details/{schedule_id}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from spin_pipeline.cluster.schedule import schedules, trigger_of

    for each in schedules(api_of(options), options.name or ""):
        mode = "on" if each.mode == "ENABLE" else "off"
        _print(f"{each.display_name:<28}{mode:<5}{trigger_of(each)!s:<28}{each.recurring_run_id}")
    return 0


def _print(text: str) -> None:
    plain_console().print(text, highlight=False, markup=False, soft_wrap=True)
