"""`spin-pipeline watch`: show the progress of a run, on this machine or elsewhere."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from spin_pipeline.watch.console import plain_console

_INTERRUPTED = 130
_BROKEN_PIPE = 141


def add(commands: Any, exit_codes: str) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "watch",
        help="show the progress of a run, read from its storage",
        epilog=f"{exit_codes}. Ctrl-C does not affect the run; it exits with code {_INTERRUPTED}.",
    )
    parser.add_argument("run_uri", metavar="RUN_URI")
    parser.add_argument("--json", action="store_true", help="print events as JSON lines; the last has kind `end`")
    parser.add_argument("--wait-for-start", action="store_true", help="wait until the run exists")
    parser.add_argument(
        "--patience",
        metavar="SECONDS",
        type=float,
        default=300.0,
        help="seconds to wait for a failed or silent run on another machine to continue; default: %(default).0f",
    )
    parser.set_defaults(do=watch)


def watch(options: argparse.Namespace) -> int:
    """Follow a run to its end; returns the run's exit code."""
    from spin_components.store.open import open_run

    try:
        with open_run(options.run_uri) as run:
            return _watch_json(run, options) if options.json else _watch(run, options)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # avoids a second error at interpreter exit
        return _BROKEN_PIPE


def _watch(run: Any, options: argparse.Namespace) -> int:
    from spin_pipeline.watch.live import open_display
    from spin_pipeline.watch.tables import print_status
    from spin_pipeline.watch.tail import check_there, follow

    console = plain_console()
    if options.wait_for_start and not run.exists("attempt.json"):
        console.print(f"waiting for a run at {run.uri}", highlight=False, soft_wrap=True)
    check_there(run, wait=options.wait_for_start)
    display = open_display(console, run.uri)
    try:
        status = follow(run, display.show, display.state, options.patience)
    finally:
        display.close()
    print_status(status, console)
    return status.exit_code


def _watch_json(run: Any, options: argparse.Namespace) -> int:
    from spin_pipeline.watch.tail import check_there, follow

    def show(events: Sequence[dict[str, Any]]) -> None:
        for event in events:
            sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()

    check_there(run, wait=options.wait_for_start)
    status = follow(run, show, lambda text: None, options.patience)
    ended = {"kind": "end", "exit_code": status.exit_code, "status": status.model_dump(mode="json")}
    sys.stdout.write(json.dumps(ended) + "\n")
    sys.stdout.flush()
    return status.exit_code
