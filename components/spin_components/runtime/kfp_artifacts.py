"""KFP artifacts of finished steps, filled from the run's storage for the Kubeflow UI.

KFP's launcher copies artifacts whole, so weights and shards are not put into them: an artifact holds addresses, digests
and counts. Errors while filling an artifact are logged and do not fail the step.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spin_components.errors import SpinError
from spin_components.model.stored import model_files
from spin_components.record.evaluation import tracked
from spin_components.record.pointers import read_pointer
from spin_components.runtime.process import STOPPED
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.digests import digest_of
from spin_components.store.lease import RUNNER
from spin_components.store.manifests import read_manifest
from spin_components.store.open import open_run

logger = logging.getLogger(__name__)

_TEXT_LIMIT = 2000


def show_data(dataset: Any, run_uri: str, returned: str) -> None:
    """Describe the prepared data: counts, sources, digests and the base model it was tokenised for."""

    def fill(run: RunStore) -> None:
        record, manifest = run.read_json(layout.RUN), read_manifest(run, layout.DATA_MANIFEST)
        files = {key: file.sha256 for key, file in manifest.outputs.items()}
        _describe(
            dataset,
            uri=run.uri_of(layout.DATA),
            base_model=record["base_model"]["uri"],
            sources={name: source["uri"] for name, source in record["data"].items()},
            files=files,
            **manifest.facts,
        )

    _fill(run_uri, returned, fill)


def show_samples(samples: Any, run_uri: str, iteration: int, shard: int, returned: str) -> None:
    """Write a few generated answers beside the human ones, as Markdown."""

    def fill(run: RunStore) -> None:
        facts = read_manifest(run, layout.manifest_of(layout.generations(iteration, shard))).facts
        counts = [f"{name}: {count}" for name, count in facts["finish_reasons"].items()]
        lines = [
            f"# Iteration {iteration}, shard {shard}",
            f"{facts['num_pairs']} answers by {facts['engine']}, {facts['tokens_per_s']} tokens/s; "
            f"ended by {', '.join(counts)}; empty: {facts['num_empty']}; "
            f"same as the human's: {facts['num_identical']}; "
            f"mean tokens: {facts['mean_generated_tokens']}, the human's {facts['mean_actual_tokens']}",
        ]
        for sample in facts["samples"]:
            lines.append(f"## Pair {sample['index']} ({sample['finish_reason']})")
            for title, name in (("Prompt", "prompt"), ("Human", "actual"), ("Model", "generated")):
                lines.append(f"**{title}**\n\n{_quoted(str(sample[name]))}")
        Path(samples.path).write_text("\n\n".join(lines) + "\n", encoding="utf-8")

    _fill(run_uri, returned, fill)


def show_training(metrics: Any, run_uri: str, iteration: int, epoch: int, returned: str) -> None:
    """Log the metrics of an epoch's last training step, and its counts."""

    def fill(run: RunStore) -> None:
        facts = read_manifest(run, layout.epoch_manifest(iteration, epoch)).facts
        counts = {name: facts[name] for name in ("num_pairs", "num_history", "num_dropped", "num_steps", "train_s")}
        _log(metrics, {**facts["metrics"], **counts})

    _fill(run_uri, returned, fill)


def show_validation(metrics: Any, run_uri: str, iteration: int, epoch: int, returned: str) -> None:
    """Log the loss on the held-out split."""

    def fill(run: RunStore) -> None:
        _log(metrics, read_manifest(run, layout.validation(iteration, epoch)).facts)

    _fill(run_uri, returned, fill)


def show_evaluation(metrics: Any, run_uri: str, iteration: int, returned: str) -> None:
    """Log the metrics of the evaluation tasks and the judge's mean score."""

    def fill(run: RunStore) -> None:
        _log(metrics, tracked(read_manifest(run, layout.evaluation(iteration)).facts))

    _fill(run_uri, returned, fill)


def show_checkpoint(model: Any, metrics: Any, report: Any, run_uri: str, iteration: int, policy_uri: str) -> None:
    """Describe the published policy, log its metrics and copy the run's report, also in a run's last iteration."""

    def fill(run: RunStore) -> None:
        facts = read_manifest(run, layout.checkpoint(iteration)).facts
        files = model_files(run, facts["checkpoint_uri"])
        best = read_pointer(run, layout.BEST)
        _describe(
            model,
            uri=facts["checkpoint_uri"],
            sha256=digest_of(files),
            bytes=sum(file.num_bytes for file in files.values()),
            iteration=iteration,
            val_loss=facts["val_loss"],
            is_best=best["iteration"] == iteration,
            best=best["uri"],
            **{name: facts[name] for name in ("decision", "outcome", "reason")},
            reference=facts["reference_uri"],
            run=run.uri,
        )
        _log(metrics, {name: value for name, value in facts.items() if name not in ("iteration", "best", "next")})
        for name in ("from_base", "from_reference", "from_best"):
            if change := facts[name]:
                _log(metrics, {name: change["mean"], f"{name}_low": change["low"], f"{name}_high": change["high"]})
        if page := run.read(layout.REPORT):
            Path(report.path).write_bytes(page)

    _fill(run_uri, policy_uri, fill)


def _fill(run_uri: str, returned: str, fill: Callable[[RunStore], None]) -> None:
    """Fill artifacts, unless the step stopped early or runs in a local run, which shows no artifacts."""
    if returned == STOPPED or RUNNER in os.environ:
        return
    with _errors_logged(), open_run(run_uri) as run:
        fill(run)


@contextmanager
def _errors_logged() -> Iterator[None]:
    """Log expected errors as a warning instead of raising them."""
    try:
        yield
    except (SpinError, OSError, KeyError) as error:
        logger.warning("the Kubeflow UI will not show this step's artifacts: %s: %s", type(error).__name__, error)


def _log(metrics: Any, values: dict[str, Any]) -> None:
    """Log the numbers among `values` as scalar metrics."""
    for name, value in values.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            metrics.log_metric(name, value)


def _describe(artifact: Any, *, uri: str, **facts: Any) -> None:
    """Write an address and facts as the artifact's metadata and as its content."""
    artifact.metadata.update({"address": uri, **facts})
    Path(artifact.path).write_text(json.dumps({"address": uri, **facts}, indent=2) + "\n", encoding="utf-8")


def _quoted(text: str) -> str:
    """Untrusted text as an indented Markdown code block, cut to `_TEXT_LIMIT` characters."""
    shortened = text if len(text) <= _TEXT_LIMIT else f"{text[:_TEXT_LIMIT]}…"
    return "\n".join(f"    {line}" for line in shortened.splitlines() or [""])
