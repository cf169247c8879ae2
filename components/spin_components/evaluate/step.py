"""Evaluate a published model, and the base model once: tasks of a harness, and a judge of what it answers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from spin_components.checkpoint.decisions import goes_on, name_of
from spin_components.checkpoint.pruning import prune_evaluated
from spin_components.errors import SpinError
from spin_components.evaluate.figures import tracked
from spin_components.evaluate.packages import check_evaluation_packages
from spin_components.evaluation_settings import EvaluationSettings
from spin_components.events import Progress
from spin_components.execution import Step, step
from spin_components.report.refresh import refresh
from spin_components.store import layout
from spin_components.store.digests import digest_of
from spin_components.store.manifests import Manifest, differing, read_manifest
from spin_components.store.models import model_digest, open_model
from spin_components.store.run import RunStore

logger = logging.getLogger(__name__)

Facts = dict[str, Any]
Outputs = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Published:
    """A model to evaluate.

    Attributes:
        iteration: `layout.BASE` for the base model.
        epoch: of the iteration, whose policy it is.
        step: optimizer steps that it has seen.
    """

    iteration: int
    epoch: int
    uri: str
    step: int


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an evaluation that stands by itself: finished, it is kept whatever becomes of the other.

    Attributes:
        inputs: what it depends on.
        work: does it; returns its facts and the files it wrote.
    """

    inputs: Facts
    work: Callable[[], tuple[Facts, Outputs]]


def evaluate(run_uri: str, iteration: int, hardware: dict[str, Any]) -> str:
    """Evaluate one model by what the attempt's `[evaluation]` asks for.

    What is finished and was made of the same is kept; what was made of something else is made again, since nothing
    depends on it.

    Args:
        run_uri: the run.
        iteration: t, or `layout.BASE`.
        hardware: the attempt's `[hardware]`.

    Returns: the model's URI; empty where there is none, or the attempt's time is up.

    Raises:
        ConfigError, DataError: tasks or the judge cannot be asked as they are set.
        EngineError: the harness or the judge failed.
    """
    with step("evaluate", run_uri, hardware, iteration=iteration) as current:
        run, evaluation = current.run, current.evaluation
        model = _published(run, iteration)
        if model is None:
            return current.stop(f"{name_of(iteration)} is not published")
        parts, key = _parts(current, evaluation, model), layout.evaluation(iteration)
        before = read_manifest(run, key) if run.exists(key) else Manifest(step="evaluate", inputs={})
        todo = {name: part for name, part in parts.items() if before.inputs.get(name) != part.inputs}
        if not parts:
            current.events.write("done", facts={}, duration_s=0.0)  # compiled with it, run without
        elif not todo:
            current.reuse(before)
        elif current.out_of_time():
            return current.stop("max_time")
        else:
            current.is_last |= _is_over(run)  # also where it fails
            check_evaluation_packages(evaluation)
            _work(current, model, todo, before)
        if _is_over(run):
            current.is_last = True
            prune_evaluated(run, current.settings)
        return model.uri


def _published(run: RunStore, iteration: int) -> Published | None:
    """What an iteration published; None where it was stopped before."""
    if iteration == layout.BASE:
        return Published(iteration, 0, str(run.read_json(layout.RUN)["base_model"]["uri"]), 0)
    if not run.exists(layout.checkpoint(iteration)):
        return None
    facts = read_manifest(run, layout.checkpoint(iteration)).facts
    return Published(iteration, int(facts["epoch"]), str(facts["checkpoint_uri"]), int(facts["step"]))


def _parts(current: Step, evaluation: EvaluationSettings, model: Published) -> dict[str, Part]:
    """What is to be done, by name."""
    parts = {}
    if evaluation.tasks:
        parts["tasks"] = _tasks_part(current, evaluation, model)
    if evaluation.judge_url:
        parts["judge"] = _judge_part(current, evaluation, model)
    return parts


def _work(current: Step, model: Published, todo: dict[str, Part], before: Manifest) -> None:
    """Do the parts, each kept as soon as it is finished; one that fails does not keep the other from being done."""
    key, made = layout.evaluation(model.iteration), before
    failures: list[SpinError] = []
    for name, part in todo.items():
        if changed := differing(before.inputs.get(name, part.inputs), part.inputs):
            logger.info("%s again: %s", name, "; ".join(changed))
        try:
            facts, outputs = part.work()
        except SpinError as error:
            logger.error("%s: %s", name, error)
            failures.append(error)
            continue
        made = made.model_copy(
            update={
                "inputs": {**made.inputs, name: part.inputs},
                "outputs": {**made.outputs, **outputs},
                "facts": {**made.facts, "policy_uri": model.uri, name: facts},
            }
        )
        if len(todo) > 1:
            current.commit(key, made)
    if not failures:
        if current.tracking:
            current.tracking.log("evaluation", model.step, tracked(made.facts))
        current.finish(key, inputs=made.inputs, outputs=made.outputs, facts=made.facts)
    refresh(current)
    if failures:
        raise failures[0]


def _tasks_part(current: Step, evaluation: EvaluationSettings, model: Published) -> Part:
    from spin_components.device import resolve_compute, set_threads

    run, settings = current.run, current.settings
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

    def work() -> tuple[Facts, Outputs]:
        if not _has_weights(run, model.uri):
            reason = "its weights are not kept (selection.save_top_k)"
            current.events.write("warning", message=f"{name_of(model.iteration)} is not evaluated: {reason}")
            return {"skipped": reason}, {}
        from spin_components.evaluate.harness import find_tasks, run_tasks

        set_threads(settings.hardware)
        folder = run.fetch(files, what="the task files", made_by=made_by) / layout.TASKS if files else None
        scratch = run.scratch_folder()
        scratch.mkdir(parents=True)
        manager = find_tasks(evaluation, folder, scratch)
        plain = open_model(run, model.uri, what="the model to evaluate")
        return {"results": run_tasks(settings, evaluation, compute, manager, plain)}, {}

    return Part(inputs, work)


def _judge_part(current: Step, evaluation: EvaluationSettings, model: Published) -> Part:
    from spin_components.evaluate.answers import questions, sampled

    run, key = current.run, layout.verdicts(model.iteration)
    found = sampled(run, (model.iteration, model.epoch))
    inputs = {
        "samples": found.file.sha256 if found.file else None,
        "data": found.data.sha256,
        **evaluation.judge_inputs(),
    }

    def work() -> tuple[Facts, Outputs]:
        if not found.file:
            return {"skipped": "its loss is not finite, so it was not sampled"}, {}
        from spin_components.data.shards import Judgment, write_rows
        from spin_components.evaluate.judge import Judge, judge_figures

        asked = questions(run, current.settings, found, evaluation.judge_num_samples)
        progress = Progress(current.events, len(asked), "answers")
        judge = Judge(evaluation)
        try:
            verdicts = judge.judge(asked, progress.update)
        finally:
            judge.close()
        with run.staged(key) as staged:
            write_rows(staged.path, Judgment, verdicts)
        return judge_figures(verdicts), dict(staged.outputs)

    return Part(inputs, work)


def _has_weights(run: RunStore, uri: str) -> bool:
    folder = run.key_of(uri)
    return folder is None or bool(run.sizes(folder))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _is_over(run: RunStore) -> bool:
    """Whether the last iteration is published; where another evaluation still works, it takes up the lease again."""
    last = max((int(key.split("/")[1]) for key in run.list("iterations", "*/checkpoint.json")), default=None)
    return last is not None and not goes_on(str(read_manifest(run, layout.checkpoint(last)).facts["decision"]))
