"""`spin-pipeline status`: print the status of a run."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from spin_pipeline.watch.console import plain_console


def add(commands: Any, exit_codes: str) -> None:
    """Add the command's parser."""
    parser = commands.add_parser("status", help="print the status of a run, read from its storage")
    parser.add_argument("run_uri", metavar="RUN_URI")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(do=status)


def status(options: argparse.Namespace) -> int:
    """Print the run's status as a table or as JSON."""
    from spin_pipeline.runs.status import read_status

    run_status = read_status(options.run_uri)
    if options.json:
        sys.stdout.write(run_status.model_dump_json(indent=2) + "\n")
        return 0
    from spin_pipeline.watch.tables import print_status

    print_status(run_status, plain_console())
    return 0
