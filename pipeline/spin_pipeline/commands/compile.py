"""`spin-pipeline compile`: write the pipeline as IR YAML."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from spin_pipeline.commands.options import add_config, settings_of
from spin_pipeline.watch.console import plain_console


def add(commands: Any, exit_codes: str) -> None:
    """Add the command's parser."""
    parser = commands.add_parser("compile", help="write the pipeline as IR YAML for the Kubeflow UI or the kfp CLI")
    add_config(parser)
    parser.add_argument("-o", "--output", metavar="FILE", default="spin.yaml", help="default: %(default)s")
    parser.set_defaults(do=compile_)


def compile_(options: argparse.Namespace) -> int:
    """Write the IR to a file."""
    settings = settings_of(options)
    from kfp import compiler

    from spin_pipeline.dag import build, shape_of
    from spin_pipeline.deploy.workflow_size import size_warning

    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    pipeline = build(settings, settings.cluster)
    num_tasks = shape_of(settings, settings.cluster).num_tasks
    compiler.Compiler().compile(pipeline, str(output))
    console = plain_console()
    console.print(f"wrote {output} ({output.stat().st_size / 1024:.0f} KiB, {num_tasks} tasks)", highlight=False)
    if warning := size_warning(num_tasks, pipeline):
        console.print(f"warning: {warning}", highlight=False, markup=False, soft_wrap=True)
    return 0
