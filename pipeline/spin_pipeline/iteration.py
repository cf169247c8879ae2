"""One iteration of self-play as a nested pipeline, with task keys that are unique in the whole run.

Kubeflow's UI finds an artifact by its task's key and its own name over the whole run. So `checkpoint` of iteration 1
has the key `checkpoint-1`, and each iteration is a pipeline of its own; their executors are shared, see
`deploy.dedupe_spec`. Items of a loop share the keys of their tasks: what belongs to a shard is shown after the loop.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from spin_components.checkpoint.component import checkpoint
from spin_components.evaluate.component import evaluate_to_decide
from spin_components.fused.component import generate_and_score, train_and_validate
from spin_components.generate.component import generate
from spin_components.ref_logprob.component import ref_logprob
from spin_components.settings.generation import MAX_SHARDS
from spin_components.store.layout import BASE, WARM_UP
from spin_components.train_epoch.component import train_epoch, train_epoch_on_nodes
from spin_components.validate.component import validate
from spin_pipeline.deploy.placement import Placement

ATTEMPT = dsl.PIPELINE_JOB_ID_PLACEHOLDER
"""KFP's id of the pipeline run. All its steps hold the lease on the run's storage under this name."""


@dataclass(frozen=True)
class Shape:
    """The numbers of tasks, which are fixed when the pipeline is compiled.

    Attributes:
        max_iterations: upper limit; a run may ask for fewer.
        epochs: number of epochs of each iteration.
        shards: number of generation shards of an iteration; 0 for as many as `prepare` chooses.
        parallelism: number of shards that run at the same time; 0 for all.
        nodes: number of pods of train-epoch.
        evaluates: whether published models are evaluated.
        warms_up: whether the base model is fine-tuned before iteration 0.
        controls: whether each iteration has a control.
        decides: whether verdicts wait for the evaluation of their models.
        fused: steps of an iteration that are part of the task before them: `ref-logprob`, `validate`.
        most_tasks: that a run on the cluster may have; None for no limit.
    """

    max_iterations: int
    epochs: tuple[int, ...]
    shards: int
    parallelism: int
    nodes: int
    evaluates: bool
    warms_up: bool = False
    controls: bool = False
    decides: bool = False
    fused: frozenset[str] = frozenset()
    most_tasks: int | None = None

    @property
    def num_tasks(self) -> int:
        """Number of tasks of a run with all iterations; of one shard where `prepare` chooses their number."""
        beyond = (self.warms_up + self.max_iterations * self.controls) * self.decides
        evaluations = (1 + self.max_iterations + beyond) * self.evaluates
        others = 2 * self.warms_up + 2 * self.max_iterations * self.controls
        a_shard, an_epoch = (2 - (step in self.fused) for step in ("ref-logprob", "validate"))
        return (
            3
            + evaluations
            + others
            + sum(a_shard * (self.shards or 1) + an_epoch * epochs + 1 for epochs in self.epochs)
        )

    @property
    def max_shards(self) -> int:
        """The largest number of shards that `prepare` may choose."""
        if self.most_tasks is None:
            return MAX_SHARDS
        numbers = (n for n in range(MAX_SHARDS, 1, -1) if replace(self, shards=n).num_tasks <= self.most_tasks)
        return next(numbers, 1)

    def as_compiled(self) -> dict[str, Any]:
        """What `prepare` compares a run's settings with."""
        return {
            "max_iterations": self.max_iterations,
            "max_epochs": list(self.epochs),
            "shards": self.shards,
            **({} if self.shards else {"max_shards": self.max_shards}),
            "nodes": self.nodes,
            "evaluates": self.evaluates,
            **({"warms_up": True} if self.warms_up else {}),
            **({"controls": True} if self.controls else {}),
            **({"decides": True} if self.decides else {}),
        }


def iteration_pipeline(shape: Shape, t: int, placer: Placement) -> GraphComponent:
    """Build the nested pipeline of iteration t; it returns the address of the next reference, or "" to stop."""
    train = trainer(shape, placer, train_epoch, train_epoch_on_nodes)

    def add_tasks(run_uri: Any, reference_uri: Any, pods: Any, shards: Any) -> Any:
        """Generate answers with the reference, train the policy, and return the address of the next reference."""
        at = {"attempt": ATTEMPT, "run_uri": run_uri, "iteration": t}
        with dsl.ParallelFor(shards, name=f"iteration {t}: shards", parallelism=shape.parallelism or None) as shard:
            of_shard = {**at, "shard": shard, "reference_uri": reference_uri}
            if "ref-logprob" in shape.fused:
                scored = task_of(generate_and_score, t, **of_shard)
                placer.with_model(scored, pods)
            else:
                generated = task_of(generate, t, **of_shard)
                placer.with_model(generated, pods)
                scored = task_of(ref_logprob, t, **of_shard, generations_uri=result_of(generated))
                placer.with_model(scored, pods)
        policy_uri: Any = reference_uri
        for epoch in range(shape.epochs[t]):
            scores = dsl.Collected(scored.output)  # the compiler fails if tasks share one `Collected`
            of_epoch = {**at, "epoch": epoch}
            if "validate" in shape.fused:
                of_epoch |= {"policy_uri": policy_uri, "scores_uris": scores, "reference_uri": reference_uri}
                validated = task_of(train_and_validate, t, epoch, **of_epoch)
                placer.with_model(validated, pods)
            else:
                trained = task_of(train, t, epoch, **of_epoch, policy_uri=policy_uri, scores_uris=scores)
                placer.with_model(trained, pods)
                of_epoch |= {"policy_uri": result_of(trained), "reference_uri": reference_uri}
                validated = task_of(validate, t, epoch, **of_epoch)
                placer.with_model(validated, pods)
            policy_uri = result_of(validated)
        if shape.decides:
            policy_uri = _add_evaluations(shape, placer, at, policy_uri, reference_uri, pods)
        published = task_of(checkpoint, t, **at, reference_uri=reference_uri, policy_uri=policy_uri)
        placer.light(published)
        return result_of(published)

    if not shape.shards:

        @dsl.pipeline(name=f"iteration-{t}")
        def iteration_of_chosen(run_uri: str, reference_uri: str, pods: dict, shards: list) -> str:
            return add_tasks(run_uri, reference_uri, pods, shards)  # type: ignore[no-any-return]

        return iteration_of_chosen

    @dsl.pipeline(name=f"iteration-{t}")
    def iteration(run_uri: str, reference_uri: str, pods: dict) -> str:
        return add_tasks(run_uri, reference_uri, pods, list(range(shape.shards)))  # type: ignore[no-any-return]

    return iteration


def _add_evaluations(
    shape: Shape, placer: Placement, at: Mapping[str, Any], policy_uri: Any, reference_uri: Any, pods: Any
) -> Any:
    """Add the evaluations that the verdict on an iteration waits for; returns the address of its policy.

    Those of the base model and of the warm-up, which iteration 0 is compared with, run beside its training.
    """
    t, before = at["iteration"], reference_uri
    models = [("base", BASE), *([("warm-up", WARM_UP)] if shape.warms_up else [])] if t == 0 else []
    for name, number in models:
        evaluated = task_of(
            evaluate_to_decide, name, **{**at, "iteration": number}, policy_uri=reference_uri, after=before
        )
        placer.with_model(evaluated, pods)
        before = result_of(evaluated)
    evaluated = task_of(evaluate_to_decide, t, **at, policy_uri=policy_uri, after=before)
    placer.with_model(evaluated, pods)
    return result_of(evaluated)


def trainer(shape: Shape, placer: Placement, here: Any, on_nodes: Any) -> Any:
    """The component of a step that trains: the one of a single pod, or that of several with their template."""
    template = placer.job_template()
    return partial(on_nodes, template=template) if shape.nodes > 1 and template else here


def task_of(component: Any, iteration: int | str | None, epoch: int | None = None, /, **arguments: Any) -> Any:
    """Call a component as a task with a key of its own, such as `train-epoch-1-0`, and a name for people.

    KFP names a task after its component, so it gets a renamed copy. With equal names KFP's compiler would also swap the
    pod configurations of executors in nested pipelines, in about one compilation of three.

    Args:
        component: the component, or a `functools.partial` of one.
        iteration: its number, `base`, `warm-up`, or `control-` and a number; None for a step of the whole run.
        epoch: within the iteration; None for a step that has none.
        arguments: of the component.
    """
    original: Any = component.func if isinstance(component, partial) else component
    fixed: Mapping[str, Any] = component.keywords if isinstance(component, partial) else {}
    own = copy.deepcopy(original)
    step = original.name.removesuffix("-on-nodes").removesuffix("-to-decide")
    own.component_spec.name = "-".join(str(part) for part in (step, iteration, epoch) if part is not None)
    task = own(**fixed, **arguments)
    task.set_caching_options(False)  # KFP's cache compares addresses, not contents; a step compares its manifest
    task.set_display_name(_display_name(step, iteration, epoch))
    return task


def _display_name(step: str, iteration: int | str | None, epoch: int | None) -> str:
    named: dict[int | str | None, str] = {None: "", "base": "base model: ", "warm-up": "warm-up: "}
    where = named.get(iteration, f"iteration {iteration}: ".replace("iteration control-", "control of iteration "))
    if epoch is None:
        return f"{where}{step}"
    return f"{where}{'train' if step == 'train-epoch' else step} epoch {epoch}"


def result_of(task: Any) -> Any:
    """The return value of a task, as opposed to its artifacts."""
    return task.outputs["Output"]
