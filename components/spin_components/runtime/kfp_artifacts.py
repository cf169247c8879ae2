"""KFP artifacts of finished steps, filled from the run's storage for the Kubeflow UI.

KFP's launcher copies artifacts whole, so weights and shards are not put into them: an artifact holds addresses, digests
and counts. Errors while filling an artifact are logged and do not fail the step.

The UI lists metrics by name over all tasks of a run: about eight a task, with the iteration and epoch that they belong
to, and a digit before the one that matters, which makes it the first. Intervals and the rest are in the report.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spin_components.errors import SpinError
from spin_components.model.stored import model_files, validated_epoch
from spin_components.record.evaluation import JUDGE, tracked
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
_MAX_METRICS = 8


def read_num_shards(run_uri: str) -> int:
    """Number of shards of a run's data."""
    with open_run(run_uri) as run:
        return int(read_manifest(run, layout.DATA_MANIFEST).facts["num_shards"])


def show_data(dataset: Any, run_uri: str, returned: str) -> None:
    """Describe the prepared data: counts, sources, digests and the base model it was tokenised for."""

    def fill(run: RunStore) -> None:
        record, manifest = run.read_json(layout.RUN), read_manifest(run, layout.DATA_MANIFEST)
        files = {key: file.sha256 for key, file in manifest.outputs.items()}
        describe(
            dataset,
            uri=run.uri_of(layout.DATA),
            base_model=record["base_model"]["uri"],
            sources={name: source["uri"] for name, source in record["data"].items()},
            files=files,
            **manifest.facts,
        )

    fill_from(run_uri, returned, fill)


def show_training(metrics: Any, run_uri: str, iteration: int, epoch: int, returned: str) -> None:
    """Log the metrics of an epoch's last training step, and its counts."""

    def fill(run: RunStore) -> None:
        facts = read_manifest(run, layout.epoch_manifest(iteration, epoch)).facts
        names = ("acc", "rewards_actual_mean", "rewards_generated_mean", "grad_norm")
        values = {name: facts["metrics"].get(name) for name in names}
        counts = {name: facts[name] for name in ("num_pairs", "train_s")}
        log(metrics, {"1_loss": facts["metrics"].get("loss"), **values, **counts, **_where(iteration, epoch)})

    fill_from(run_uri, returned, fill)


def show_warm_up(metrics: Any, run_uri: str, returned: str) -> None:
    """Log the losses on the held-out split before and after the warm-up, and its counts."""

    def fill(run: RunStore) -> None:
        facts = read_manifest(run, layout.WARM_UP_MANIFEST).facts
        values = {name: facts[name] for name in ("base_val_loss", "num_steps")}
        log(metrics, {"1_val_loss": facts["val_loss"], **values, "num_epochs": len(facts["epochs"])})

    fill_from(run_uri, returned, fill)


def show_control(metrics: Any, run_uri: str, iteration: int, returned: str) -> None:
    """Log the loss of an iteration's control on the held-out split, and its counts."""

    def fill(run: RunStore) -> None:
        facts = read_manifest(run, layout.control_manifest(iteration)).facts
        log(metrics, {"1_val_loss": facts["val_loss"], "num_steps": facts["num_steps"], **_where(iteration)})

    fill_from(run_uri, returned, fill)


def show_validation(metrics: Any, run_uri: str, iteration: int, epoch: int, returned: str) -> None:
    """Log the loss on the held-out split, and statistics of the answers that the policy sampled there."""

    def fill(run: RunStore) -> None:
        where = validated_epoch(run, returned) if iteration < layout.BASE else (iteration, epoch)
        facts = read_manifest(run, layout.validation(*where)).facts
        names = ("num_answers", "spin_margin", "spin_acc", "length_ratio", "repetition_rate")
        values = {name: facts.get(name) for name in names}
        log(metrics, {"1_val_loss": facts["val_loss"], **values, **_where(iteration, epoch)})

    fill_from(run_uri, returned, fill)


def show_evaluation(metrics: Any, run_uri: str, iteration: int, returned: str) -> None:
    """Log the judge's mean score and the first metrics of the evaluation tasks; the report has all."""

    def fill(run: RunStore) -> None:
        number = validated_epoch(run, returned)[0] if iteration == layout.WARM_UP else iteration
        values = tracked(read_manifest(run, layout.evaluation(number)).facts)
        names = sorted(values, key=lambda name: name != JUDGE)[:_MAX_METRICS]
        log(metrics, {**{name: values[name] for name in names}, **_where(iteration)})

    fill_from(run_uri, returned, fill)


def show_checkpoint(
    model: Any, metrics: Any, samples: Any, report: Any, run_uri: str, iteration: int, policy_uri: str
) -> None:
    """Describe the published policy, its metrics, answers of all shards and the report; also of a last iteration."""

    def fill(run: RunStore) -> None:
        facts = read_manifest(run, layout.checkpoint(iteration)).facts
        best = read_pointer(run, layout.BEST)
        describe_model(model, run, facts, is_best=best["iteration"] == iteration, best=best["uri"])
        changes = {name: (facts[name] or {}).get("mean") for name in ("from_base", "from_best")}
        names = ("acc", "spin_margin", "num_pairs")
        values = {"1_val_loss": facts["val_loss"], **changes, **{name: facts.get(name) for name in names}}
        log(metrics, {**values, **_where(iteration, int(facts["epoch"]))})
        text = samples_text(run, iteration)
        Path(samples.path).write_text(text, encoding="utf-8")
        if page := run.read(layout.REPORT):
            Path(report.path).write_bytes(page)

    fill_from(run_uri, policy_uri, fill)


def samples_text(run: RunStore, iteration: int) -> str:
    """A few generated answers of every shard of an iteration beside the human ones, as Markdown."""
    lines = [f"# Iteration {iteration}"]
    for shard in range(read_manifest(run, layout.DATA_MANIFEST).facts["num_shards"]):
        facts = read_manifest(run, layout.manifest_of(layout.generations(iteration, shard))).facts
        counts = [f"{name}: {count}" for name, count in facts["finish_reasons"].items()]
        lines.append(
            f"## Shard {shard}\n\n{facts['num_pairs']} answers by {facts['engine']}, {facts['tokens_per_s']} tokens/s; "
            f"ended by {', '.join(counts)}; empty: {facts['num_empty']}; "
            f"same as the human's: {facts['num_identical']}; "
            f"mean tokens: {facts['mean_generated_tokens']}, the human's {facts['mean_actual_tokens']}"
        )
        for sample in facts["samples"]:
            lines.append(f"### Pair {sample['index']} ({sample['finish_reason']})")
            for title, name in (("Prompt", "prompt"), ("Human", "actual"), ("Model", "generated")):
                lines.append(f"**{title}**\n\n{_quoted(str(sample[name]))}")
    return "\n\n".join(lines) + "\n"


def describe_model(model: Any, run: RunStore, facts: Mapping[str, Any], **more: Any) -> None:
    """Describe a published model: address, digest, size, and how it was judged.

    Args:
        model: the artifact.
        run: the run.
        facts: of the iteration's checkpoint.
        more: further facts.
    """
    files = model_files(run, facts["checkpoint_uri"])
    describe(
        model,
        uri=facts["checkpoint_uri"],
        sha256=digest_of(files),
        bytes=sum(file.num_bytes for file in files.values()),
        iteration=facts["iteration"],
        val_loss=facts["val_loss"],
        **{name: facts[name] for name in ("decision", "outcome", "reason")},
        reference=facts["reference_uri"],
        run=run.uri,
        **more,
    )


def fill_from(run_uri: str, returned: str, fill: Callable[[RunStore], None]) -> None:
    """Fill artifacts, unless the step stopped early or runs in a local run, which shows no artifacts."""
    if returned == STOPPED or RUNNER in os.environ:
        return
    with errors_logged(), open_run(run_uri) as run:
        fill(run)


@contextmanager
def errors_logged() -> Iterator[None]:
    """Log expected errors as a warning instead of raising them."""
    try:
        yield
    except (SpinError, OSError, KeyError) as error:
        logger.warning("the Kubeflow UI will not show this step's artifacts: %s: %s", type(error).__name__, error)


def log(metrics: Any, values: Mapping[str, Any]) -> None:
    """Log the finite numbers among `values` as scalar metrics."""
    for name, value in known(values).items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            metrics.log_metric(name, value)


def known(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that KFP accepts as metadata: it fails a task on a null, and on a number that is not finite."""
    return {
        name: known(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }


def _where(iteration: int, epoch: int | None = None) -> dict[str, int]:
    """The labels among the metrics; the base model and the warm-up have none, a control that of its iteration."""
    if (of_control := layout.controlled(iteration)) is not None:
        return {"iteration": of_control}
    if iteration <= layout.BASE:
        return {}
    return {"iteration": iteration} | ({} if epoch is None else {"epoch": epoch})


def describe(artifact: Any, *, uri: str, **facts: Any) -> None:
    """Write an address and facts as an artifact's metadata and as its content; facts that are None are left out."""
    content = known({"address": uri, **facts})
    artifact.metadata.update(content)
    Path(artifact.path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _quoted(text: str) -> str:
    """Untrusted text as an indented Markdown code block, cut to `_TEXT_LIMIT` characters."""
    shortened = text if len(text) <= _TEXT_LIMIT else f"{text[:_TEXT_LIMIT]}…"
    return "\n".join(f"    {line}" for line in shortened.splitlines() or [""])
