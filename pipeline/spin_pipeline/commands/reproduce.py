"""`spin-pipeline reproduce`: repeat a run from its record and compare the two."""

from __future__ import annotations

import argparse
import math
from typing import Any

from spin_components.errors import ConfigError
from spin_pipeline.commands.options import tell_left_out
from spin_pipeline.watch.console import plain_console

_CODES = (
    "exit codes: 0 equal within the tolerance; 1 not equal, or the new run failed; 2 the command is wrong, or the run "
    "cannot be reproduced here; 3 stopped, the same command resumes"
)


def add(commands: Any, exit_codes: str) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "reproduce",
        help="repeat a run on this machine and compare the two",
        description="Repeats a run from its record, after checking the digests of the base model and the data, and "
        "compares the records of both runs step by step.",
        epilog=_CODES,
    )
    parser.add_argument("run_uri", metavar="RUN_URI")
    parser.add_argument("--into", metavar="URI", help="address of the new run; default: RUN_URI-again")
    parser.add_argument(
        "--iterations", metavar="N", type=int, help="first N iterations only; default: all finished ones"
    )
    parser.add_argument(
        "--tolerance",
        metavar="X",
        type=float,
        default=0.0,
        help="allowed absolute difference of losses, log-probabilities and gradient norms; above 0, sampled answers "
        "and weights may differ; default: 0, bit for bit",
    )
    parser.add_argument(
        "--set",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="override the recorded device, ranks or threads; or say what is not taken over from a record, like "
        "model.trust_remote_code=true",
    )
    parser.set_defaults(do=reproduce)


def reproduce(options: argparse.Namespace) -> int:
    """Repeat the run and print the comparison; returns 0 if both are equal, 1 if not."""
    tolerance = options.tolerance
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ConfigError(f"--tolerance {tolerance}: expected a finite number, 0 or above")
    from spin_components.record.history import read_history
    from spin_components.store.open import open_run
    from spin_pipeline.local.repeat import repeat
    from spin_pipeline.runs.reproduction.compare import compare
    from spin_pipeline.runs.reproduction.explain import reasons
    from spin_pipeline.runs.reproduction.plan import plan
    from spin_pipeline.runs.reproduction.tables import print_result
    from spin_pipeline.watch.tables import print_status

    console = plain_console()
    with open_run(options.run_uri) as old_run:
        old = read_history(old_run)
        tell_left_out(old_run, options, apart_from=("tracking.",))
        planned = plan(old_run, old, options.into, options.iterations, options.overrides)
        status = repeat(planned.settings, console)
        if status.state != "done":
            print_status(status, console)
            return status.exit_code
        with open_run(planned.settings.run.uri) as new_run:
            new = read_history(new_run)
            result = compare(old_run, old, new_run, new, planned.num_iterations)
    print_result(result, console, tolerance=tolerance, reasons=reasons(old, new) if result.mismatches else [])
    return int(any(result.exceeding(tolerance)))
