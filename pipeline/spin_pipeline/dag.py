"""The self-play loop as a Kubeflow pipeline.

    prepare -> validate the base -> iteration 0 -> If(next != "") iteration 1 -> If(next != "") iteration 2 ...

    iteration(t, reference):
        [generate -> ref-logprob] for each shard, in parallel
        train-epoch 0 -> validate -> train-epoch 1 -> validate ...
        checkpoint -> URI of the next reference, or "" to stop
    evaluate, if configured: no other task depends on it

The reference of iteration t + 1 is the return value of iteration t: the immutable address of a model, as a string. KFP
cannot loop over tasks that depend on each other, so the iterations are nested at compile time; fewer may run.
`kfp dsl compile --py dag.py --output spin.yaml` compiles `spin`, the pipeline of the demo configuration.
"""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from spin_components.checkpoint.component import checkpoint
from spin_components.evaluate.component import evaluate
from spin_components.generate.component import generate
from spin_components.prepare.component import prepare
from spin_components.ref_logprob.component import ref_logprob
from spin_components.settings.settings import Settings
from spin_components.store.layout import BASE
from spin_components.train_epoch.component import train_epoch, train_epoch_on_nodes
from spin_components.validate.component import validate
from spin_pipeline.config import load_settings, pipeline_parameters
from spin_pipeline.deploy.cluster_settings import ClusterSettings
from spin_pipeline.deploy.dedupe_spec import merge_duplicates
from spin_pipeline.deploy.placement import POD_FIELDS, Placement

ATTEMPT = dsl.PIPELINE_JOB_ID_PLACEHOLDER
"""KFP's id of the pipeline run. All its steps hold the lease on the run's storage under this name."""


@dataclass(frozen=True)
class Shape:
    """The numbers of tasks, which are fixed when the pipeline is compiled.

    Attributes:
        max_iterations: upper limit; a run may ask for fewer.
        epochs: number of epochs of each iteration.
        shards: number of generation shards of an iteration.
        parallelism: number of shards that run at the same time; 0 for all.
        nodes: number of pods of train-epoch.
        evaluates: whether published models are evaluated.
    """

    max_iterations: int
    epochs: tuple[int, ...]
    shards: int
    parallelism: int
    nodes: int
    evaluates: bool


def build(settings: Settings, cluster: ClusterSettings | None = None, *, parallelism: int = 0) -> GraphComponent:
    """Build the pipeline of a configuration, with the settings as the defaults of its parameters.

    Args:
        settings: the shape follows from `spin.max_iterations`, `spin.max_epochs`, `generation.shards`,
            `hardware.nodes` and whether `[evaluation]` names tasks or a judge.
        cluster: the cluster that it will run on; None for this machine.
        parallelism: number of shards that run at the same time; 0 for all.
    """
    shape = Shape(
        settings.spin.max_iterations,
        tuple(settings.spin.epochs(t) for t in range(settings.spin.max_iterations)),
        settings.generation.shards,
        parallelism,
        settings.hardware.nodes,
        settings.evaluation.is_on,
    )
    defaults = pipeline_parameters(settings)
    placer = Placement(cluster)
    iteration_of = {epochs: _iteration_pipeline(shape, epochs, placer) for epochs in sorted(set(shape.epochs))}
    compiled = {
        "max_iterations": shape.max_iterations,
        "max_epochs": list(shape.epochs),
        "shards": shape.shards,
        "nodes": shape.nodes,
        "evaluates": shape.evaluates,
    }

    @dsl.pipeline(name="spin", description="Self-play fine-tuning of a language model.")
    def spin(
        run_uri: str = defaults["run_uri"],
        max_iterations: int = defaults["max_iterations"],
        run: dict = defaults["run"],
        model: dict = defaults["model"],
        data: dict = defaults["data"],
        spin: dict = defaults["spin"],
        objective: dict = defaults["objective"],
        generation: dict = defaults["generation"],
        training: dict = defaults["training"],
        lora: dict = defaults["lora"],
        validation: dict = defaults["validation"],
        evaluation: dict = defaults["evaluation"],
        selection: dict = defaults["selection"],
        hardware: dict = defaults["hardware"],
        placement: dict = defaults["placement"],
        tracking: dict = defaults["tracking"],
    ) -> None:
        """Train a model by self-play; running again with the same run_uri resumes.

        Args:
            run_uri: Storage of the run: s3://bucket/prefix, or a folder that all steps share.
            max_iterations: Number of self-play iterations, at most as many as were compiled.
            run: Seed and wall-clock limit.
            model: The base model.
            data: Prompts with human answers, and their length limits.
            spin: Epochs, max_steps, ref_policy_kl_penalty (beta), history.
            objective: The loss and its additional terms.
            generation: Engine and sampling of the reference's answers.
            training: Optimizer, batch sizes, precision, backend.
            lora: Rank of a low-rank adapter to train instead of all weights, and how it is stored.
            validation: How the held-out loss is measured.
            evaluation: Tasks and a judge for published models; whether there are any is fixed at compile time.
            selection: Which checkpoints are kept and when the run stops.
            hardware: Device and ranks of a step.
            placement: GPUs, CPU, memory and nodes requested by the steps with a model.
            tracking: Trackers that metrics are sent to.
        """
        prepared = _uncached(
            prepare(
                attempt=ATTEMPT,
                run_uri=run_uri,
                max_iterations=max_iterations,
                run=run,
                model=model,
                data=data,
                spin=spin,
                objective=objective,
                generation=generation,
                training=training,
                lora=lora,
                validation=validation,
                evaluation=evaluation,
                selection=selection,
                hardware=hardware,
                placement=placement,
                tracking=tracking,
                compiled=compiled,
            )
        )
        placer.light(prepared, retry=False)
        pod_fields = {name: prepared.outputs[name] for name in POD_FIELDS}
        base_uri = prepared.outputs["policy_uri"]
        base = _uncached(
            _validate_base(
                attempt=ATTEMPT,
                run_uri=run_uri,
                iteration=BASE,
                epoch=0,
                policy_uri=base_uri,
                reference_uri="",
                hardware=hardware,
            )
        )
        placer.score(base, pod_fields).set_display_name("validate base")

        def add_evaluation(t: int, after: Any) -> None:
            """Add the evaluation of the model that iteration t published; t is `BASE` for the base model."""
            if shape.evaluates:
                at = {"attempt": ATTEMPT, "run_uri": run_uri, "iteration": t}
                evaluated = placer.evaluate(_uncached(evaluate(**at, after=after, hardware=hardware)), pod_fields)
                evaluated.set_display_name("evaluate base" if t == BASE else f"evaluate iteration {t}")

        add_evaluation(BASE, _result(base))

        def add_iteration(t: int, reference: Any) -> None:
            """Add iteration t and, nested in a condition on its result, those after it."""
            played = iteration_of[shape.epochs[t]](
                run_uri=run_uri,
                iteration=t,
                reference_uri=reference,
                max_iterations=max_iterations,
                selection=selection,
                hardware=hardware,
                **pod_fields,
            )
            played.set_display_name(f"iteration {t}")
            add_evaluation(t, played.output)
            if t + 1 < shape.max_iterations:
                with dsl.If(played.output != "", name=f"go-on-{t + 1}"):
                    add_iteration(t + 1, played.output)

        add_iteration(0, _result(base))

    merge_duplicates(spin.pipeline_spec, spin.platform_spec)
    return spin


def _iteration_pipeline(shape: Shape, epochs: int, placer: Placement) -> GraphComponent:
    """Build the nested pipeline of an iteration; all iterations with this number of epochs share it."""
    several = len(set(shape.epochs)) > 1
    template = placer.job_template()
    train = partial(train_epoch_on_nodes, template=template) if shape.nodes > 1 and template else train_epoch

    @dsl.pipeline(name=f"spin-iteration-{epochs}-epochs" if several else "spin-iteration")
    def spin_iteration(
        run_uri: str,
        iteration: int,
        reference_uri: str,
        max_iterations: int,
        selection: dict,
        hardware: dict,
        accelerator: str,
        generate_accelerators: str,
        train_accelerators: str,
        score_accelerators: str,
        generate_cpu: str,
        generate_memory: str,
        train_cpu: str,
        train_memory: str,
        score_cpu: str,
        score_memory: str,
        node_selector: dict,
        tolerations: list,
        affinity: dict,
    ) -> str:
        """Generate answers with the reference, train the policy, and return the address of the next reference."""
        arguments = locals()
        pod_fields = {name: arguments[name] for name in POD_FIELDS}
        at = {"attempt": ATTEMPT, "run_uri": run_uri, "iteration": iteration}
        with dsl.ParallelFor(list(range(shape.shards)), parallelism=shape.parallelism or None) as shard:
            generated = _uncached(generate(**at, shard=shard, reference_uri=reference_uri, hardware=hardware))
            placer.generate(generated, pod_fields)
            scored = _uncached(
                ref_logprob(
                    **at,
                    shard=shard,
                    reference_uri=reference_uri,
                    generations_uri=_result(generated),
                    hardware=hardware,
                )
            )
            placer.score(scored, pod_fields)
        policy_uri: Any = reference_uri
        for epoch in range(epochs):
            trained = _uncached(
                train(
                    **at,
                    epoch=epoch,
                    policy_uri=policy_uri,
                    scores_uris=dsl.Collected(scored.output),  # the compiler fails if tasks share one `Collected`
                    hardware=hardware,
                )
            )
            placer.train(trained, pod_fields).set_display_name(f"train epoch {epoch}")
            validated = _uncached(
                validate(**at, epoch=epoch, policy_uri=_result(trained), reference_uri=reference_uri, hardware=hardware)
            )
            placer.score(validated, pod_fields).set_display_name(f"validate epoch {epoch}")
            policy_uri = _result(validated)
        published = _uncached(
            checkpoint(
                **at,
                reference_uri=reference_uri,
                policy_uri=policy_uri,
                max_iterations=max_iterations,
                selection=selection,
            )
        )
        placer.light(published)
        return _result(published)  # type: ignore[no-any-return]

    return spin_iteration


def _result(task: Any) -> Any:
    """The return value of a task, as opposed to its artifacts."""
    return task.outputs["Output"]


def _renamed(component: Any, name: str) -> Any:
    """A copy of a component under another name.

    KFP's compiler may swap the pod configurations of two executors of the same name, one in a pipeline and one in a
    pipeline nested in it. It depends on the order of a hash table: about one compilation in three is affected.
    """
    other = copy.deepcopy(component)
    other.component_spec.name = name
    return other


_validate_base = _renamed(validate, "validate-base")


def _uncached(task: Any) -> Any:
    """Turn KFP's cache off: it compares addresses, not contents. Each step compares its manifest instead."""
    return task.set_caching_options(False)


_DEMO = load_settings()
spin = build(_DEMO, _DEMO.cluster)
