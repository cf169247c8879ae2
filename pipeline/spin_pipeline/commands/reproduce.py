"""`spin-pipeline reproduce`: a run made again from its record, and held against it."""

from __future__ import annotations

import argparse
import math
from typing import Any

from rich.console import Console

from spin_components.errors import ConfigError

_CODES = (
    "exit codes: 0 equal within the tolerance; 1 not equal, or the new run failed; 2 the command is wrong, or the run "
    "cannot be reproduced here; 3 stopped, the same command goes on"
)


def add(commands: Any, exit_codes: str) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "reproduce",
        help="make a run again on this machine, and say where both part",
        description="Makes a run again from its own record, with the base model and the data held to their digests, "
        "and compares step by step what both recorded.",
        epilog=_CODES,
    )
    parser.add_argument("run_uri", metavar="RUN_URI")
    parser.add_argument("--into", metavar="URI", help="where the new run lies; default: beside the other, NAME-again")
    parser.add_argument("--iterations", metavar="N", type=int, help="the first N alone; default: all that are finished")
    parser.add_argument(
        "--tolerance",
        metavar="X",
        type=float,
        default=0.0,
        help="how far losses, log-probabilities and gradient norms may be apart; above 0, sampled answers and weights "
        "may be others; default: 0, bit for bit",
    )
    parser.add_argument(
        "--set",
        metavar="hardware.KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="another device, or other ranks or threads, than were recorded",
    )
    parser.set_defaults(do=reproduce)


def reproduce(options: argparse.Namespace) -> int:
    """Make the run again, print the comparison, and return whether both are equal."""
    tolerance = options.tolerance
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ConfigError(f"--tolerance {tolerance}: expected a number, 0 or above")
    from spin_components.report.history import read_history
    from spin_components.store.run import open_run
    from spin_pipeline.reproduction.holding import hold
    from spin_pipeline.reproduction.plan import plan
    from spin_pipeline.reproduction.reasons import reasons
    from spin_pipeline.reproduction.repeat import repeat
    from spin_pipeline.reproduction.tables import print_held
    from spin_pipeline.tables import print_status

    console = Console()
    with open_run(options.run_uri) as old_run:
        old = read_history(old_run)
        planned = plan(old_run, old, options.into, options.iterations, options.overrides)
        status = repeat(planned.settings, console)
        if status.state != "done":
            print_status(status, console)
            return status.exit_code
        with open_run(planned.settings.run.uri) as new_run:
            new = read_history(new_run)
            held = hold(old_run, old, new_run, new, planned.num_iterations)
    print_held(held, console, tolerance=tolerance, reasons=reasons(old, new) if held.partings else [])
    return int(any(held.counting(tolerance)))
