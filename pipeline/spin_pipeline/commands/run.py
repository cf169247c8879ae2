"""`spin-pipeline run`: run or resume on this machine."""

from __future__ import annotations

import argparse
import json
from typing import Any

from spin_components.errors import ConfigError
from spin_pipeline.commands.options import add_config, settings_of, tell_left_out
from spin_pipeline.config import check_settings, load_settings
from spin_pipeline.deploy.cluster_settings import Configuration
from spin_pipeline.watch.console import plain_console


def add(commands: Any, exit_codes: str) -> None:
    """Add the command's parser."""
    parser = commands.add_parser("run", help="run or resume on this machine", epilog=exit_codes)
    add_config(parser)
    parser.add_argument(
        "--fork-from", metavar="RUN_URI", help="begin a new run with a finished iteration of this one as the base model"
    )
    parser.add_argument("--iteration", metavar="N", default="best", help="of --fork-from; default: %(default)s")
    parser.set_defaults(do=run)


def run(options: argparse.Namespace) -> int:
    """Run the DAG here, print how it ended, and return the exit code."""
    settings = _forked(options) if options.fork_from else settings_of(options)
    from spin_pipeline.local.run import run_local
    from spin_pipeline.watch.tables import print_status

    console = plain_console()
    status = run_local(settings, console)
    print_status(status, console)
    return status.exit_code


def _forked(options: argparse.Namespace) -> Configuration:
    from spin_components.store.open import open_run
    from spin_pipeline.runs.published import find_published, forked_model, forked_values

    if not options.run_uri:
        raise ConfigError("--fork-from begins a new run; name its address with --run-uri URI")
    with open_run(options.fork_from) as other:
        if options.config is None:
            tell_left_out(other, options)
            return check_settings(
                forked_values(other, options.iteration),
                options.overrides,
                options.run_uri,
                source=f"the settings of {other.uri}",
            )
        model = forked_model(other, find_published(other, options.iteration))
        overrides = [*options.overrides, *(f"model.{name}={json.dumps(value)}" for name, value in model.items())]
    return load_settings(options.config, overrides, options.run_uri)
