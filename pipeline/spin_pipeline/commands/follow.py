"""`spin-pipeline follow`: wait for a run on a cluster."""

from __future__ import annotations

import argparse
from typing import Any

from spin_pipeline.commands.options import add_target, api_of
from spin_pipeline.commands.submit import add_wait
from spin_pipeline.watch.console import plain_console


def add(commands: Any, exit_codes: str) -> None:
    """Add the command's parser."""
    parser = commands.add_parser("follow", help="wait for a run on a cluster", epilog=exit_codes)
    parser.add_argument("run_id", metavar="RUN_ID", help="KFP's id: the last part of the UI address that submit prints")
    add_target(parser)
    add_wait(parser)
    parser.set_defaults(do=follow)


def follow(options: argparse.Namespace) -> int:
    """Follow a run to its end."""
    from spin_pipeline.cluster.follow import Follower

    return Follower(
        api_of(options),
        options.run_id,
        plain_console(),
        timeout_s=options.timeout,
        cancel_on_interrupt=options.cancel_on_interrupt,
    ).wait()
