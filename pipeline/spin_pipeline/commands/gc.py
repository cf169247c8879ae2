"""`spin-pipeline gc`: delete files that no manifest references."""

from __future__ import annotations

import argparse
from typing import Any

from spin_pipeline.watch.console import plain_console


def add(commands: Any, exit_codes: str) -> None:
    """Add the command's parser."""
    parser = commands.add_parser("gc", help="delete files of a run that no manifest references")
    parser.add_argument("run_uri", metavar="RUN_URI")
    parser.add_argument("--dry-run", action="store_true", help="only print what would be deleted")
    parser.set_defaults(do=gc)


def gc(options: argparse.Namespace) -> int:
    """Delete the files, and print them."""
    from spin_pipeline.runs.garbage import collect_garbage
    from spin_pipeline.watch.tables import print_garbage

    print_garbage(collect_garbage(options.run_uri, dry_run=options.dry_run), plain_console(), dry_run=options.dry_run)
    return 0
