"""`spin-pipeline schedule`: runs that recur."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from spin_components.errors import ConfigError
from spin_pipeline.commands.cluster_options import add_order, add_target, api_of, order_of
from spin_pipeline.commands.config_options import add_config


def add(commands: Any, exit_codes: str) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "schedule",
        help="set, replace, remove or list runs that recur on a cluster",
        epilog=f"Each time, the cluster does what `submit --wait` with the same options does. {exit_codes}",
    )
    parser.add_argument("--name", metavar="NAME", help="of the schedule; the same name replaces it")
    parser.add_argument(
        "--cron", metavar="EXPR", help="'0 3 * * 1' is Mondays at 3, in KFP's time zone (UTC unless set)"
    )
    parser.add_argument("--every", metavar="TIME", help="instead of --cron: 30m, 6h, 7d")
    parser.add_argument("--remove", action="store_true", help="remove the schedule; runs that it started go on")
    parser.add_argument("--list", action="store_true", help="list schedules, or those of --name")
    parser.add_argument(
        "--pod-endpoint", metavar="URL", default="", help="of KFP as pods reach it; default: its service"
    )
    add_config(parser)
    add_target(parser)
    add_order(parser)
    parser.set_defaults(do=schedule)


def schedule(options: argparse.Namespace) -> int:
    """Do the one of them that the options say."""
    from spin_pipeline.cluster import schedule as cluster

    if options.list and not options.remove:
        return _list(options)
    if not options.name:
        raise ConfigError("name the schedule with --name NAME")
    if options.remove:
        count = cluster.remove_schedule(api_of(options), options.name)
        if not count:
            raise ConfigError(f"there is no schedule {options.name}; see `spin-pipeline schedule --list`")
        _say(f"removed {options.name}")
        return 0
    if bool(options.cron) == bool(options.every):
        raise ConfigError("say when, with either --cron EXPR or --every TIME")
    trigger = cluster.parse_cron(options.cron) if options.cron else cluster.parse_interval(options.every)
    order = order_of(options)
    api = api_of(options)
    schedule_id, what = cluster.set_schedule(api, options.name, order, trigger, pod_endpoint=options.pod_endpoint)
    _say(f"{what}: {options.name}, {trigger}\n{api.target.ui}/#/recurringrun/details/{schedule_id}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from spin_pipeline.cluster.schedule import schedules, trigger_of

    for found in schedules(api_of(options), options.name or ""):
        mode = "on" if found.mode == "ENABLE" else "off"
        _say(f"{found.display_name:<28}{mode:<5}{trigger_of(found)!s:<28}{found.recurring_run_id}")
    return 0


def _say(text: str) -> None:
    Console().print(text, highlight=False, markup=False, soft_wrap=True)
