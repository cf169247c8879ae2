"""What the Kubeflow UI shows of a finished step: KFP's artifacts, filled from the run's storage.

The launcher copies artifacts in whole, so nothing heavy goes there: weights and shards stay where they are, and their
artifacts carry addresses, digests and counts. Nothing that goes wrong here is an error of the step.
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
from spin_components.evaluate.figures import tracked
from spin_components.process import RUNNER, STOPPED
from spin_components.store import layout
from spin_components.store.digests import digest_of
from spin_components.store.manifests import read_manifest
from spin_components.store.models import model_files
from spin_components.store.run import RunStore, open_run

logger = logging.getLogger(__name__)

_TEXT_LIMIT = 2000


def show_data(dataset: Any, run_uri: str, returned: str) -> None:
    """The prepared data: counts, sources, digests, and the base model they were made for."""

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
    """A few generated answers beside the human's, as Markdown."""

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
    """Metrics of an epoch's last step."""

    def fill(run: RunStore) -> None:
        facts = read_manifest(run, layout.epoch_manifest(iteration, epoch)).facts
        counts = {name: facts[name] for name in ("num_pairs", "num_history", "num_dropped", "num_steps", "train_s")}
        _log(metrics, {**facts["metrics"], **counts})

    _fill(run_uri, returned, fill)


def show_validation(metrics: Any, run_uri: str, iteration: int, epoch: int, returned: str) -> None:
    """The held-out loss."""

    def fill(run: RunStore) -> None:
        _log(metrics, read_manifest(run, layout.validation(iteration, epoch)).facts)

    _fill(run_uri, returned, fill)


def show_evaluation(metrics: Any, run_uri: str, iteration: int, returned: str) -> None:
    """Metrics of tasks, and the judge's mean score."""

    def fill(run: RunStore) -> None:
        _log(metrics, tracked(read_manifest(run, layout.evaluation(iteration)).facts))

    _fill(run_uri, returned, fill)


def show_checkpoint(model: Any, metrics: Any, report: Any, run_uri: str, iteration: int, policy_uri: str) -> None:
    """The published policy, its metrics, and the run's report; also when the run stops with it."""

    def fill(run: RunStore) -> None:
        facts = read_manifest(run, layout.checkpoint(iteration)).facts
        files = model_files(run, facts["checkpoint_uri"])
        best = run.read_json(layout.BEST)
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
    """Show something, unless the step stopped before its end, or nobody would look at it: on one machine."""
    if returned == STOPPED or RUNNER in os.environ:
        return
    with _never_an_error(), open_run(run_uri) as run:
        fill(run)


@contextmanager
def _never_an_error() -> Iterator[None]:
    try:
        yield
    except (SpinError, OSError, KeyError) as error:
        logger.warning("the Kubeflow UI will not show this step's artifacts: %s: %s", type(error).__name__, error)


def _log(metrics: Any, values: dict[str, Any]) -> None:
    """Numbers, as scalar metrics."""
    for name, value in values.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            metrics.log_metric(name, value)


def _describe(artifact: Any, *, uri: str, **facts: Any) -> None:
    """Say where something lies and what it is, in the artifact's metadata and as its content."""
    artifact.metadata.update({"address": uri, **facts})
    Path(artifact.path).write_text(json.dumps({"address": uri, **facts}, indent=2) + "\n", encoding="utf-8")


def _quoted(text: str) -> str:
    """Text of a model or a person as a code block, which no Markdown within it can leave."""
    shown = text if len(text) <= _TEXT_LIMIT else f"{text[:_TEXT_LIMIT]}…"
    return "\n".join(f"    {line}" for line in shown.splitlines() or [""])
