"""Options of the commands that talk to a KFP API."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from spin_pipeline.commands.config_options import settings_of

if TYPE_CHECKING:
    from spin_pipeline.cluster.client import Api
    from spin_pipeline.cluster.order import Order


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add --endpoint, --token-file, --ca-cert and --namespace."""
    parser.add_argument("--endpoint", metavar="URL", help="of the KFP API; default: KFP_ENDPOINT, or the pod's cluster")
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="read for each request; default: KFP_TOKEN, KFP_TOKEN_FILE, or the pod's own for KFP",
    )
    parser.add_argument("--ca-cert", metavar="FILE", help="certificates to trust; default: KFP_CA_CERT")
    parser.add_argument(
        "--namespace", metavar="NS", help="where KFP serves several; default: KFP_NAMESPACE, or the pod's"
    )


def add_order(parser: argparse.ArgumentParser) -> None:
    """Add names, and what is to be done about earlier runs."""
    parser.add_argument("--pipeline", metavar="NAME", default="", help="in KFP; default: run.name")
    parser.add_argument("--experiment", metavar="NAME", default="", help="default: the pipeline's name")
    parser.add_argument("--run-name", metavar="NAME", default="", help="default: the pipeline's name and the time")
    parser.add_argument("--service-account", metavar="SA", default="", help="of the pods; default: KFP's")
    parser.add_argument(
        "--continue-from",
        metavar="URI",
        default="",
        help="a run, or a folder of runs: the best model of the newest finished one is the base model",
    )
    parser.add_argument(
        "--once-for-data",
        action="store_true",
        help="end with code 4 where a run of that folder or of the experiment has this data",
    )


def api_of(options: argparse.Namespace) -> Api:
    """Connect to what the options name."""
    import logging

    from spin_pipeline.cluster.client import connect
    from spin_pipeline.cluster.target import find_target

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return connect(find_target(options.endpoint, options.token_file, options.ca_cert, options.namespace))


def order_of(options: argparse.Namespace) -> Order:
    """What the options order."""
    from spin_pipeline.cluster.order import Order

    order = Order(
        settings_of(options),
        options.pipeline,
        options.experiment,
        options.run_name,
        options.service_account,
        options.continue_from,
        options.once_for_data,
    )
    order.check()
    return order
