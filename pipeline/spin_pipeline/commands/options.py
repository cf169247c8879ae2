"""Options that several commands share, and what they read from them."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spin_components.store.base import RunStore
    from spin_pipeline.cluster.client import Api
    from spin_pipeline.cluster.submission import Submission
from spin_pipeline.config import load_settings
from spin_pipeline.deploy.cluster_settings import Configuration


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


def tell_left_out(run: RunStore, options: argparse.Namespace, *, apart_from: tuple[str, ...] = ()) -> None:
    """Name on standard error, in one line, those settings of a recorded run that are on there and not taken over.

    Args:
        run: the recorded run.
        options: of the command; what `--set` names is not told.
        apart_from: beginnings of names that are not told.

    Raises:
        IntegrityError: the record is damaged.
    """
    from spin_components.settings.inheritance import left_out
    from spin_components.store import layout

    if not run.exists(layout.RUN):
        return
    names = left_out(run.read_json(layout.RUN).get("settings"), source=run.uri_of(layout.RUN))
    said = {override.partition("=")[0].strip() for override in options.overrides}
    if run.exists(layout.inputs_manifest("tasks")):
        said.add("evaluation.task_files")  # the run's own copy is taken instead
    if names := [name for name in names if name not in said and not any(map(name.startswith, apart_from))]:
        sys.stderr.write(
            f"spin-pipeline: not taken over from {run.uri}: {', '.join(names)}. They lead to code or to an address; "
            "where they are meant, say them on this command with --set\n"
        )


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add --endpoint, --token-file, --ca-cert and --namespace."""
    parser.add_argument(
        "--endpoint", metavar="URL", help="address of the KFP API; default: KFP_ENDPOINT, or that of the pod's cluster"
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="file with the token, read for each request; default: KFP_TOKEN, KFP_TOKEN_FILE, or the pod's token",
    )
    parser.add_argument("--ca-cert", metavar="FILE", help="CA certificates to trust; default: KFP_CA_CERT")
    parser.add_argument(
        "--namespace", metavar="NS", help="user's namespace in a multi-user KFP; default: KFP_NAMESPACE, or the pod's"
    )


def add_submission(parser: argparse.ArgumentParser) -> None:
    """Add the names in KFP, --service-account, --continue-from and --once-for-data."""
    parser.add_argument("--pipeline", metavar="NAME", default="", help="pipeline in KFP; default: run.name")
    parser.add_argument(
        "--experiment", metavar="NAME", default="", help="experiment in KFP; default: the pipeline's name"
    )
    parser.add_argument(
        "--run-name", metavar="NAME", default="", help="run in KFP; default: the pipeline's name and the time"
    )
    parser.add_argument(
        "--service-account", metavar="SA", default="", help="service account of the pods; default: KFP's"
    )
    parser.add_argument(
        "--continue-from",
        metavar="URI",
        default="",
        help="start from the best model of this run, or of the newest finished run in this folder",
    )
    parser.add_argument(
        "--once-for-data",
        action="store_true",
        help="exit with code 4 if an earlier run in that folder or in the experiment has this data",
    )


def api_of(options: argparse.Namespace) -> Api:
    """Connect to the KFP API that the options name."""
    import logging

    from spin_pipeline.cluster.client import connect
    from spin_pipeline.cluster.target import find_target

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return connect(find_target(options.endpoint, options.token_file, options.ca_cert, options.namespace))


def submission_of(options: argparse.Namespace) -> Submission:
    """The submission that the options describe, checked."""
    from spin_pipeline.cluster.submission import Submission

    submission = Submission(
        settings_of(options),
        options.pipeline,
        options.experiment,
        options.run_name,
        options.service_account,
        options.continue_from,
        options.once_for_data,
    )
    submission.check()
    return submission
