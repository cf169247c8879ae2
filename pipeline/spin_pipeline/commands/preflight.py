"""`spin-pipeline preflight`: whether a cluster has what a run needs."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from spin_pipeline.commands.options import add_config, settings_of
from spin_pipeline.watch.console import plain_console

if TYPE_CHECKING:
    from spin_pipeline.cluster.preflight.findings import Finding

_STYLES = {"pass": "green", "warn": "yellow", "fail": "red"}


def add(commands: Any, exit_codes: str) -> None:
    """Add the command's parser."""
    parser = commands.add_parser("preflight", help="check that a cluster has what a run needs", epilog=exit_codes)
    add_config(parser)
    parser.add_argument(
        "--endpoint", metavar="URL", help="address of the KFP API; default: KFP_ENDPOINT, or that of the pod's cluster"
    )
    parser.add_argument(
        "--token-file", metavar="FILE", help="file with the token for KFP; default: KFP_TOKEN or KFP_TOKEN_FILE"
    )
    parser.add_argument("--ca-cert", metavar="FILE", help="CA certificates to trust; default: KFP_CA_CERT")
    parser.add_argument("--namespace", metavar="NS", help="namespace of the runs; default: kubeflow")
    parser.add_argument(
        "--service-account",
        metavar="NAME",
        default="",
        help="service account of the pods; default: pipeline-runner, or default-editor",
    )
    parser.add_argument(
        "--context", metavar="NAME", default="", help="context of the kubeconfig file; default: the current one"
    )
    parser.add_argument(
        "--autoscaled", action="store_true", help="nodes are added on demand: too few nodes are only a warning"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(do=preflight)


def preflight(options: argparse.Namespace) -> int:
    """Print the result of each check; returns 0 if all requirements are met, else 1."""
    configuration = settings_of(options)
    from spin_components.runtime.kubernetes_api import connect_kubernetes
    from spin_pipeline.cluster.client import Api
    from spin_pipeline.cluster.preflight.checks import Cluster, check_all
    from spin_pipeline.cluster.target import find_target

    target = find_target(options.endpoint, options.token_file, options.ca_cert, options.namespace)
    cluster = Cluster(
        connect_kubernetes(options.context),
        Api(target),
        options.namespace or "",  # not a pod's own: KFP for one user runs in its namespace, whoever asks
        target.namespace,
        options.service_account,
        options.autoscaled,
    )
    findings = check_all(configuration, cluster)
    return _as_json(findings) if options.json else _as_lines(findings, plain_console())


def _as_json(iterator: Iterable[Finding]) -> int:
    findings = list(iterator)
    code = _exit_code(findings)
    value = {"ready": code == 0, "checks": [asdict(finding) for finding in findings]}
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    return code


def _as_lines(iterator: Iterable[Finding], console: Console) -> int:
    findings = []
    for finding in iterator:
        findings.append(finding)
        line = Text.assemble((finding.verdict, _STYLES[finding.verdict]), f"  {finding.subject}: {finding.message}")
        console.print(line, soft_wrap=True)
        if finding.remedy:
            console.print(Text(f"      {finding.remedy}", style="dim"), soft_wrap=True)
    counts = Counter(str(finding.verdict) for finding in findings)
    code = _exit_code(findings)
    state = "not ready" if code else "ready"
    console.print(
        f"{state}: {counts['pass']} passed, {counts['warn']} warned, {counts['fail']} failed", highlight=False
    )
    return code


def _exit_code(findings: Iterable[Finding]) -> int:
    return int(any(finding.verdict == "fail" for finding in findings))
