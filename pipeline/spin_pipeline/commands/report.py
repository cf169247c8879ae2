"""`spin-pipeline report`: write the report of a run as one HTML page."""

from __future__ import annotations

import argparse
from typing import Any

from spin_pipeline.watch.console import plain_console


def add(commands: Any, exit_codes: str) -> None:
    """Add the command's parser."""
    parser = commands.add_parser("report", help="write the report of a run, finished or not, as one HTML page")
    parser.add_argument("run_uri", metavar="RUN_URI")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: report/index.html in the run's storage")
    parser.set_defaults(do=report)


def report(options: argparse.Namespace) -> int:
    """Write the page, and print its address."""
    from spin_pipeline.runs.report import write_report

    address, num_bytes = write_report(options.run_uri, options.output)
    plain_console().print(f"wrote {address} ({num_bytes / 1e6:.1f} MB)", highlight=False, soft_wrap=True)
    return 0
