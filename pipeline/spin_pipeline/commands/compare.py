"""`spin-pipeline compare`: compare several runs."""

from __future__ import annotations

import argparse
from typing import Any

from spin_pipeline.watch.console import plain_console


def add(commands: Any, exit_codes: str) -> None:
    """Add the command's parser."""
    parser = commands.add_parser("compare", help="compare the settings and results of several runs")
    parser.add_argument("run_uris", metavar="RUN_URI", nargs="+")
    parser.add_argument("-o", "--output", metavar="FILE", help="also write an HTML page")
    parser.set_defaults(do=compare)


def compare(options: argparse.Namespace) -> int:
    """Print the comparison, and write it as a page with --output."""
    from spin_pipeline.runs.compare import compare_runs, comparison_page, print_comparison
    from spin_pipeline.runs.report import write_page

    comparison, console = compare_runs(options.run_uris), plain_console()
    print_comparison(comparison, console)
    if options.output:
        page = comparison_page(comparison).encode("utf-8", "replace")
        console.print(f"wrote {write_page(page, options.output)}", highlight=False, soft_wrap=True)
    return 0
