"""The loop of self-play, as a Kubeflow pipeline.

    prepare -> validate the base -> iteration 0 -> If(next != "") iteration 1 -> If(next != "") iteration 2 ...

    iteration(t, reference):
        [generate -> ref-logprob] for each shard, in parallel
        train-epoch 0 -> validate -> train-epoch 1 -> validate ...
        checkpoint -> URI of the next reference, or "" to stop
    evaluate, where the configuration asks for it: beside what comes next, which does not wait for it

The reference of iteration t + 1 is what iteration t returns: an immutable address that travels as a string. KFP has no
loop over tasks that feed each other, so the iterations are nested here, at compile time, and fewer may run.
`kfp dsl compile --py dag.py --output spin.yaml` compiles `spin` at the end of this file: the demo's configuration.
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
from spin_components.settings import Settings
from spin_components.store.layout import BASE
from spin_components.train_epoch.component import train_epoch, train_epoch_on_nodes
from spin_components.validate.component import validate
from spin_pipeline.cluster_settings import ClusterSettings
from spin_pipeline.config import load_settings, pipeline_parameters
from spin_pipeline.placement import PLACES, Placement
from spin_pipeline.twins import merge_twins

ATTEMPT = dsl.PIPELINE_JOB_ID_PLACEHOLDER
"""The pipeline run, as its steps know it: they hold the lease on the run's storage together."""


@dataclass(frozen=True)
class Shape:
    """What is fixed when the pipeline is compiled.

    Attributes:
        max_iterations: at most so many; fewer can be asked for at run time.
        epochs: of each iteration.
        shards: generations in parallel.
        parallelism: shards at the same time; 0 for all.
        nodes: pods of train-epoch.
        evaluates: whether models are evaluated beside training.
    """

    max_iterations: int
    epochs: tuple[int, ...]
    shards: int
    parallelism: int
    nodes: int
    evaluates: bool


def build(settings: Settings, cluster: ClusterSettings | None = None, *, parallelism: int = 0) -> GraphComponent:
    """The pipeline of a configuration: its shape fixed, its settings the parameters' defaults.

    Args:
        settings: `spin.max_iterations` (fewer can run), `spin.max_epochs`, `generation.shards`, `hardware.nodes` and
            whether `[evaluation]` asks for anything give the shape.
        cluster: where it will run; None for this machine.
        parallelism: shards at the same time; 0 for all.
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
    place = Placement(cluster)
    iteration_of = {epochs: _iteration_pipeline(shape, epochs, place) for epochs in sorted(set(shape.epochs))}
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
            run_uri: Where everything about the run lies: s3://bucket/prefix, or a folder that all steps share.
            max_iterations: Rounds of self-play, at most as many as were compiled.
            run: Seed and wall-clock limit.
            model: The base model.
            data: Prompts with human answers, and how long they may be.
            spin: Epochs, max_steps, ref_policy_kl_penalty (beta), history.
            objective: The loss, and what is added to it.
            generation: Engine and sampling of the reference's answers.
            training: Optimizer, batch sizes, precision, backend.
            lora: Rank of a low-rank adapter to train instead of all weights, and how it is kept.
            validation: How the held-out loss is measured.
            evaluation: Tasks and a judge that published models are evaluated by; whether there are any is fixed.
            selection: What is kept and when to stop.
            hardware: Device and ranks of a step.
            placement: GPUs, CPU, memory and nodes that the steps with a model ask for.
            tracking: Where metrics are sent beside the run's own storage.
        """
        prepared = _fresh(
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
        place.light(prepared, retry=False)
        places = {name: prepared.outputs[name] for name in PLACES}
        base_uri = prepared.outputs["policy_uri"]
        base = _fresh(
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
        place.score(base, places).set_display_name("validate base")

        def judge(t: int, after: Any) -> None:
            """Evaluate what iteration t published, once it has; t is `BASE` for the base model."""
            if shape.evaluates:
                at = {"attempt": ATTEMPT, "run_uri": run_uri, "iteration": t}
                evaluated = place.evaluate(_fresh(evaluate(**at, after=after, hardware=hardware)), places)
                evaluated.set_display_name("evaluate base" if t == BASE else f"evaluate iteration {t}")

        judge(BASE, _returned(base))

        def play(t: int, reference: Any) -> None:
            """Iteration t, and within its condition all that follow."""
            played = iteration_of[shape.epochs[t]](
                run_uri=run_uri,
                iteration=t,
                reference_uri=reference,
                max_iterations=max_iterations,
                selection=selection,
                hardware=hardware,
                **places,
            )
            played.set_display_name(f"iteration {t}")
            judge(t, played.output)
            if t + 1 < shape.max_iterations:
                with dsl.If(played.output != "", name=f"go-on-{t + 1}"):
                    play(t + 1, played.output)

        play(0, _returned(base))

    merge_twins(spin.pipeline_spec, spin.platform_spec)
    return spin


def _iteration_pipeline(shape: Shape, epochs: int, place: Placement) -> GraphComponent:
    """An iteration of so many epochs; one pipeline serves all iterations that are alike."""
    several = len(set(shape.epochs)) > 1
    template = place.job_template()
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
        """One round: the reference plays, the policy learns, the next reference comes out."""
        given = locals()
        places = {name: given[name] for name in PLACES}
        at = {"attempt": ATTEMPT, "run_uri": run_uri, "iteration": iteration}
        with dsl.ParallelFor(list(range(shape.shards)), parallelism=shape.parallelism or None) as shard:
            played = _fresh(generate(**at, shard=shard, reference_uri=reference_uri, hardware=hardware))
            place.generate(played, places)
            scored = _fresh(
                ref_logprob(
                    **at, shard=shard, reference_uri=reference_uri, generations_uri=_returned(played), hardware=hardware
                )
            )
            place.score(scored, places)
        policy_uri: Any = reference_uri
        for epoch in range(epochs):
            trained = _fresh(
                train(
                    **at,
                    epoch=epoch,
                    policy_uri=policy_uri,
                    scores_uris=dsl.Collected(scored.output),  # a fresh one for each: sharing one breaks the compiler
                    hardware=hardware,
                )
            )
            place.train(trained, places).set_display_name(f"train epoch {epoch}")
            checked = _fresh(
                validate(
                    **at, epoch=epoch, policy_uri=_returned(trained), reference_uri=reference_uri, hardware=hardware
                )
            )
            place.score(checked, places).set_display_name(f"validate epoch {epoch}")
            policy_uri = _returned(checked)
        published = _fresh(
            checkpoint(
                **at,
                reference_uri=reference_uri,
                policy_uri=policy_uri,
                max_iterations=max_iterations,
                selection=selection,
            )
        )
        place.light(published)
        return _returned(published)  # type: ignore[no-any-return]

    return spin_iteration


def _returned(task: Any) -> Any:
    """What a step returns, beside the artifacts that it shows."""
    return task.outputs["Output"]


def _named(component: Any, name: str) -> Any:
    """A component under another name.

    KFP's compiler mixes up how pods are configured where a pipeline and one nested in it have executors of one name,
    in one compilation out of three: the order of a hash table decides.
    """
    other = copy.deepcopy(component)
    other.component_spec.name = name
    return other


_validate_base = _named(validate, "validate-base")


def _fresh(task: Any) -> Any:
    """KFP's cache knows addresses, not what lies behind them; each step decides by its manifest instead."""
    return task.set_caching_options(False)


_DEMO = load_settings()
spin = build(_DEMO, _DEMO.cluster)
