"""The command line `spin-pipeline`."""

from __future__ import annotations

import argparse
import errno
import io
import sys
from collections.abc import Sequence
from typing import NoReturn

from spin_components.errors import SpinError, clean
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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be no text
    options = _parser().parse_args(arguments)
    try:
        return int(options.do(options))
    except SpinError as error:
        sys.stderr.write(f"spin-pipeline: {type(error).__name__}: {error}\n")
        return error.exit_code
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stderr.write(f"spin-pipeline: {_explain(error)}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("spin-pipeline: interrupted\n")
        return 3


_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "name a place that can be written to",
    errno.EACCES: "correct its permissions, or name another place",
    errno.EPERM: "correct its permissions, or name another place",
}
"""What to do about an error of the operating system, by its number."""


def _explain(error: OSError) -> str:
    """One line about a file that cannot be read or written: which, why, and what to do."""
    remedy = _REMEDIES.get(error.errno or 0, "check the path")
    where = f"{error.filename!r}: " if error.filename is not None else ""
    return clean(f"{type(error).__name__}: {where}{error.strerror or error}; {remedy}, and run the same command")


class _Parser(argparse.ArgumentParser):
    """The parser of the command line and of its commands; its errors show no login of an address."""

    def error(self, message: str) -> NoReturn:
        super().error(clean(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="spin-pipeline", description="Self-play fine-tuning as a Kubeflow pipeline.", epilog=EXIT_CODES
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands, EXIT_CODES)
    return parser


if __name__ == "__main__":
    sys.exit(main())
