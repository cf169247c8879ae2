"""The command line `spin-pipeline`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from spin_components.errors import SpinError
from spin_pipeline import __version__
from spin_pipeline.commands import (
    compare,
    compile,
    estimate,
    export,
    follow,
    gc,
    preflight,
    report,
    reproduce,
    run,
    schedule,
    status,
    submit,
    watch,
)

COMMANDS = (
    run,
    compile,
    estimate,
    preflight,
    submit,
    follow,
    schedule,
    status,
    watch,
    report,
    compare,
    reproduce,
    export,
    gc,
)
EXIT_CODES = (
    "exit codes: 0 done; 1 failed; 2 the command or configuration is wrong; 3 stopped, the same command goes on; "
    "4 nothing new to train on (--once-for-data)"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, run the command, and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.do(options))
    except SpinError as error:
        sys.stderr.write(f"spin-pipeline: {type(error).__name__}: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("spin-pipeline: interrupted\n")
        return 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spin-pipeline", description="Self-play fine-tuning as a Kubeflow pipeline.", epilog=EXIT_CODES
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands, EXIT_CODES)
    return parser


if __name__ == "__main__":
    sys.exit(main())
