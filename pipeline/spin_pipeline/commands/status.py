"""`spin-pipeline status`: how a run stands."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from rich.console import Console


def add(commands: Any, exit_codes: str) -> None:
    """Add the command's parser."""
    parser = commands.add_parser("status", help="how a run stands, from its storage alone")
    parser.add_argument("run_uri", metavar="RUN_URI")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(do=status)


def status(options: argparse.Namespace) -> int:
    """Print the run's status as a table or as JSON."""
    from spin_pipeline.status import read_status

    found = read_status(options.run_uri)
    if options.json:
        sys.stdout.write(found.model_dump_json(indent=2) + "\n")
        return 0
    from spin_pipeline.tables import print_status

    print_status(found, Console())
    return 0
