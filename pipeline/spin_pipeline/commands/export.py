"""`spin-pipeline export`: write a trained model as a Hugging Face folder."""

from __future__ import annotations

import argparse
from typing import Any

from spin_pipeline.watch.console import plain_console


def add(commands: Any, exit_codes: str) -> None:
    """Add the command's parser."""
    parser = commands.add_parser("export", help="write a trained model as a Hugging Face folder")
    parser.add_argument("run_uri", metavar="RUN_URI")
    parser.add_argument("destination", metavar="DEST", help="an empty folder or s3://bucket/prefix")
    parser.add_argument(
        "--iteration",
        metavar="N",
        default="best",
        help="number of the iteration, warm-up, or best: the base model or the warm-up if no iteration is better; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--adapter", action="store_true", help="write a peft adapter for the base model; for runs with [lora]"
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code of the base model's folder, where adapters are merged into it; whether the run did so is "
        "not followed",
    )
    parser.set_defaults(do=export)


def export(options: argparse.Namespace) -> int:
    """Write the model, and print its address."""
    from spin_pipeline.runs.export import export_model

    published, address = export_model(
        options.run_uri,
        options.iteration,
        options.destination,
        as_adapter=options.adapter,
        trust_remote_code=options.trust_remote_code,
    )
    what = f"{published.name}{', as an adapter,' if options.adapter else ''}"
    plain_console().print(f"wrote {what} to {address}", highlight=False, soft_wrap=True)
    return 0
