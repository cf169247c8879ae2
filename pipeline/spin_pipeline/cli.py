"""`spin-pipeline`: what a person types."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from spin_components.errors import ConfigError, SpinError
from spin_components.settings import Settings
from spin_pipeline import __version__
from spin_pipeline.config import check_settings, load_settings

EXIT_CODES = (
    "exit codes: 0 done; 1 failed; 2 the command or configuration is wrong; 3 stopped, the same command goes on"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, do what it says, and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.do(options))
    except SpinError as error:
        sys.stderr.write(f"spin-pipeline: {type(error).__name__}: {error}\n")
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spin-pipeline", description="Self-play fine-tuning as a Kubeflow pipeline.", epilog=EXIT_CODES
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run or resume on this machine", epilog=EXIT_CODES)
    _add_config(run)
    run.add_argument(
        "--fork-from", metavar="RUN_URI", help="begin a new run with a finished iteration of this one as the base model"
    )
    run.add_argument("--iteration", metavar="N", default="best", help="of --fork-from; default: %(default)s")
    run.set_defaults(do=_run)

    compile_ = commands.add_parser("compile", help="write the pipeline as IR YAML for the Kubeflow UI or the kfp CLI")
    _add_config(compile_)
    compile_.add_argument("-o", "--output", metavar="FILE", default="spin.yaml", help="default: %(default)s")
    compile_.set_defaults(do=_compile)

    status = commands.add_parser("status", help="how a run stands, from its storage alone")
    status.add_argument("run_uri", metavar="RUN_URI")
    status.add_argument("--json", action="store_true", help="for programs")
    status.set_defaults(do=_status)

    export = commands.add_parser("export", help="write a trained model as a plain Hugging Face folder")
    export.add_argument("run_uri", metavar="RUN_URI")
    export.add_argument("destination", metavar="DEST", help="a folder or s3://bucket/prefix that is free")
    export.add_argument("--iteration", metavar="N", default="best", help="default: %(default)s")
    export.set_defaults(do=_export)

    gc = commands.add_parser("gc", help="delete what no manifest of a run names")
    gc.add_argument("run_uri", metavar="RUN_URI")
    gc.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    gc.set_defaults(do=_gc)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", metavar="FILE", help="TOML, or the name of a shipped one (tiny, demo, …); default: demo"
    )
    parser.add_argument("--run-uri", metavar="URI", help="folder or s3://bucket/prefix of the run, instead of run.uri")
    parser.add_argument(
        "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], dest="overrides", help="override a setting"
    )


def _run(options: argparse.Namespace) -> int:
    settings = (
        _forked(options) if options.fork_from else load_settings(options.config, options.overrides, options.run_uri)
    )
    from spin_pipeline.local import run_local
    from spin_pipeline.tables import print_status

    console = Console()
    status = run_local(settings, console)
    print_status(status, console)
    return status.exit_code


def _forked(options: argparse.Namespace) -> Settings:
    from spin_components.store.run import open_run
    from spin_pipeline.published import find_published, forked_model, forked_values

    if not options.run_uri:
        raise ConfigError("--fork-from begins a new run; say where it shall lie with --run-uri URI")
    with open_run(options.fork_from) as other:
        if options.config is None:
            return check_settings(
                forked_values(other, options.iteration),
                options.overrides,
                options.run_uri,
                source=f"the settings of {other.uri}",
            )
        model = forked_model(other, find_published(other, options.iteration))
        overrides = [*options.overrides, *(f"model.{name}={json.dumps(value)}" for name, value in model.items())]
    return load_settings(options.config, overrides, options.run_uri)


def _compile(options: argparse.Namespace) -> int:
    settings = load_settings(options.config, options.overrides, options.run_uri)
    from kfp import compiler

    from spin_pipeline.dag import build

    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(build(settings), str(output))
    Console().print(f"wrote {output} ({output.stat().st_size / 1024:.0f} KiB)", highlight=False)
    return 0


def _status(options: argparse.Namespace) -> int:
    from spin_pipeline.status import read_status

    status = read_status(options.run_uri)
    if options.json:
        sys.stdout.write(status.model_dump_json(indent=2) + "\n")
        return 0
    from spin_pipeline.tables import print_status

    print_status(status, Console())
    return 0


def _export(options: argparse.Namespace) -> int:
    from spin_pipeline.export import export_model

    published, address = export_model(options.run_uri, options.iteration, options.destination)
    Console().print(f"wrote iteration {published.iteration} to {address}", highlight=False, soft_wrap=True)
    return 0


def _gc(options: argparse.Namespace) -> int:
    from spin_pipeline.garbage import collect_garbage
    from spin_pipeline.tables import print_garbage

    print_garbage(collect_garbage(options.run_uri, dry_run=options.dry_run), Console(), dry_run=options.dry_run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
