"""`spin-pipeline submit`: start a run on a cluster."""

from __future__ import annotations

import argparse
from typing import Any

from spin_pipeline.commands.options import add_config, add_submission, add_target, api_of, submission_of
from spin_pipeline.watch.console import plain_console


def add(commands: Any, exit_codes: str) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "submit",
        help="upload the pipeline to KFP and start a run",
        epilog=f"{exit_codes}; {{time}} in the run's URI is replaced by the time of submission",
    )
    add_config(parser)
    add_target(parser)
    add_submission(parser)
    add_wait(parser)
    parser.add_argument(
        "--wait", action="store_true", help="follow the run to its end; exit with 0 only if it succeeded"
    )
    parser.set_defaults(do=submit)


def add_wait(parser: argparse.ArgumentParser) -> None:
    """Add --timeout and --cancel-on-interrupt."""
    parser.add_argument(
        "--timeout", metavar="S", type=float, default=0, help="stop waiting after S seconds; the run goes on"
    )
    parser.add_argument("--cancel-on-interrupt", action="store_true", help="terminate the run on Ctrl-C")


def submit(options: argparse.Namespace) -> int:
    """Start a run, and follow it with --wait."""
    from spin_pipeline.cluster.follow import Follower
    from spin_pipeline.cluster.submit import pipeline_of, resolve
    from spin_pipeline.cluster.submit import submit as start

    console = plain_console()
    submission = submission_of(options)
    package = pipeline_of(submission.settings)
    submission, digest = resolve(submission, console)
    api = api_of(options)
    run = start(api, submission, digest, console, package=package)
    if not options.wait:
        return 0
    follower = Follower(
        api,
        run.run_id,
        console,
        timeout_s=options.timeout,
        cancel_on_interrupt=options.cancel_on_interrupt,
    )
    return follower.wait()
