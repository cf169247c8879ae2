"""Options of the commands that take a configuration."""

from __future__ import annotations

import argparse

from spin_pipeline.cluster_settings import Configuration
from spin_pipeline.config import load_settings


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add --config, --run-uri and --set."""
    parser.add_argument(
        "--config", metavar="FILE", help="TOML file, or the name of a shipped one (tiny, demo, …); default: demo"
    )
    parser.add_argument("--run-uri", metavar="URI", help="folder or s3://bucket/prefix of the run; overrides run.uri")
    parser.add_argument(
        "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], dest="overrides", help="override a setting"
    )


def settings_of(options: argparse.Namespace) -> Configuration:
    """Load the configuration that the options name; see `load_settings`."""
    return load_settings(options.config, options.overrides, options.run_uri)
