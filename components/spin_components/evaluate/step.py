"""Evaluate a published model, and the base model once: tasks of lm-evaluation-harness, and an LLM as a judge."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from spin_components.errors import SpinError
from spin_components.model.stored import model_digest, open_model
from spin_components.record.chat_template import read_chat_template
from spin_components.record.decisions import name_of
from spin_components.record.evaluation import tracked
from spin_components.record.pointers import is_over
from spin_components.record.retention import prune_evaluated
from spin_components.report.page import refresh
from spin_components.runtime.step import Step
from spin_components.settings.packages import check_packages
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.digests import digest_of
from spin_components.store.manifests import Manifest, differing, read_manifest

logger = logging.getLogger(__name__)

Facts = dict[str, Any]
Outputs = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Published:
    """A model to evaluate.

    Attributes:
        iteration: `layout.BASE` for the base model.
        epoch: of the iteration, whose policy it is.
        uri: of the model.
        global_step: optimizer steps that it has seen.
    """

    iteration: int
    epoch: int
    uri: str
    global_step: int


@dataclass(frozen=True, slots=True)
class Part:
    """One part of an evaluation; its results are kept even if the other part fails.

    Attributes:
        inputs: what it depends on.
        run: evaluates; returns its facts and the files it wrote.
    """

    inputs: Facts
    run: Callable[[], tuple[Facts, Outputs]]


def evaluate(run_uri: str, iteration: int, hardware: dict[str, Any] | None = None) -> str:
    """Evaluate one model by the attempt's `[evaluation]`.

    A part that is finished is repeated if its inputs have changed, since nothing depends on it.

    Args:
        run_uri: the run.
        iteration: t, or `layout.BASE`.
        hardware: `[hardware]`; None for what `prepare` recorded for the attempt.

    Returns: the model's URI; empty where there is none, or the attempt's time is up.

    Raises:
        ConfigError, DataError: tasks or judge cannot be used as they are set.
        EngineError: the harness or the judge failed.
    """
    with Step.begin("evaluate", run_uri, hardware, iteration=iteration) as step:
        model = _published(step.run, iteration)
        if model is None:
            step.stop(f"{name_of(iteration)} is not published")
            return step.returns("")
        parts = _parts(step, model)
        if not parts:
            step.events.write("done", facts={}, duration_s=0.0)  # the pipeline has the step, this attempt no evaluation
        elif step.is_due(
            layout.evaluation(iteration),
            lambda: {name: part.inputs for name, part in parts.items()},
            replaces=True,
        ):
            step.is_last |= is_over(step.run)  # also where it fails
            check_packages(step.evaluation)
            _evaluate(step, model, parts)
        if not step.is_stopped and is_over(step.run):
            step.is_last = True
            prune_evaluated(step.run, step.settings)
        return step.returns(model.uri)


def _published(run: RunStore, iteration: int) -> Published | None:
    """The model that an iteration published; None if it was stopped before."""
    if iteration == layout.BASE:
        return Published(iteration, 0, str(run.read_json(layout.RUN)["base_model"]["uri"]), 0)
    if not run.exists(layout.checkpoint(iteration)):
        return None
    facts = read_manifest(run, layout.checkpoint(iteration)).facts
    return Published(iteration, int(facts["epoch"]), str(facts["checkpoint_uri"]), int(facts["step"]))


def _parts(step: Step, model: Published) -> dict[str, Part]:
    """The parts that the attempt asks for, by name."""
    parts = {}
    if step.evaluation.tasks:
        parts["tasks"] = _tasks_part(step, model)
    if step.evaluation.judge_url:
        parts["judge"] = _judge_part(step, model)
    return parts


def _evaluate(step: Step, model: Published, parts: dict[str, Part]) -> None:
    """Run the parts that are not finished, and publish each as soon as it is; then raise the first failure."""
    previous = step.previous or Manifest(step=step.name, inputs={})
    due = {name: part for name, part in parts.items() if previous.inputs.get(name) != part.inputs}
    current = previous
    failures: list[SpinError] = []
    for name, part in due.items():
        if changed := differing(previous.inputs.get(name, part.inputs), part.inputs):
            logger.info("%s again: %s", name, "; ".join(changed))
        try:
            facts, outputs = part.run()
        except SpinError as error:
            logger.error("%s: %s", name, error)
            failures.append(error)
            continue
        current = current.model_copy(
            update={
                "inputs": {**current.inputs, name: part.inputs},
                "outputs": {**current.outputs, **outputs},
                "facts": {**current.facts, "policy_uri": model.uri, name: facts},
            }
        )
        if len(due) > 1:
            step.commit(layout.evaluation(model.iteration), current)
    if not failures:
        step.track("evaluation", model.global_step, tracked(current.facts))
        step.publish(current.facts, inputs=current.inputs, outputs=current.outputs)
    refresh(step.run, step.warn)
    if failures:
        raise failures[0]


def _tasks_part(step: Step, model: Published) -> Part:
    """Tasks of lm-evaluation-harness."""
    from spin_components.model.compute import resolve_compute, set_threads

    run, settings, evaluation = step.run, step.settings, step.evaluation
    compute = resolve_compute(settings.hardware, settings.training.precision)
    made_by = layout.inputs_manifest("tasks")
    files = read_manifest(run, made_by).outputs if evaluation.task_files else {}
    inputs = {
        "policy": model_digest(run, model.uri),
        **evaluation.task_inputs(),
        "evaluation.task_files (content)": digest_of(files),
        "run.seed": settings.run.seed,
        "precision": compute.precision,
        "lm_eval": _version("lm_eval"),
    }

    def run_part() -> tuple[Facts, Outputs]:
        if not _has_weights(run, model.uri):
            reason = "its weights are not kept (selection.save_top_k)"
            step.warn(f"{name_of(model.iteration)} is not evaluated: {reason}")
            return {"skipped": reason}, {}
        from spin_components.harness.tasks import find_tasks, run_tasks

        set_threads(settings.hardware)
        folder = run.fetch(files, what="the task files", made_by=made_by) / layout.TASKS if files else None
        scratch = run.scratch_folder()
        scratch.mkdir(parents=True)
        manager = find_tasks(evaluation, folder, scratch)
        plain = open_model(run, model.uri, what="the model to evaluate")
        results = run_tasks(
            settings,
            evaluation,
            compute,
            manager,
            plain,
            chat_template=read_chat_template(run),
            chat_template_date=str(read_manifest(run, layout.DATA_MANIFEST).facts.get("chat_template_date", "")),
        )
        return {"results": results}, {}

    return Part(inputs, run_part)


def _judge_part(step: Step, model: Published) -> Part:
    """An LLM that scores the answers sampled by `validate`."""
    from spin_components.evaluate.judged_answers import questions, sampled

    run, key = step.run, layout.judge_scores(model.iteration)
    answers = sampled(run, model.iteration, model.epoch)
    inputs = {
        "samples": answers.file.sha256 if answers.file else None,
        "data": answers.data.sha256,
        **step.evaluation.judge_inputs(),
    }

    def run_part() -> tuple[Facts, Outputs]:
        if not answers.file:
            return {"skipped": "its loss is not finite, so it was not sampled"}, {}
        from spin_components.data.shards import Judgment, write_rows
        from spin_components.evaluate.judge import Judge, judge_figures

        asked = questions(run, step.settings, answers, step.evaluation.judge_num_samples)
        with closing(Judge(step.evaluation)) as judge:
            scores = judge.score(asked, step.progress(len(asked), "answers").update)
        with run.staged(key) as staged:
            write_rows(staged.path, Judgment, scores)
        return judge_figures(scores), dict(staged.outputs)

    return Part(inputs, run_part)


def _has_weights(run: RunStore, uri: str) -> bool:
    """Whether a model's weights are in storage; those of a base model elsewhere are taken to be."""
    folder = run.key_of(uri)
    return folder is None or bool(run.sizes(folder))


def _version(package: str) -> str:
    """Version of a package; empty if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
