"""Texts about the pipeline for the Kubeflow UI, where they are the only prose that a user sees."""

from __future__ import annotations

from spin_components import __version__
from spin_components.settings.settings import Settings

_STEPS = """\
prepare checks settings, model and data, and writes the prompts; its output run_uri is where everything lies.
validate measures the loss on held-out human answers, of the base model and after each epoch.
warm-up fine-tunes the base model on the human answers first, where configured.
generate samples an answer to each prompt from the reference, a shard a task; ref-logprob scores both answers of a pair.
train epoch trains the policy on the pairs; with several nodes it starts a TrainJob.
checkpoint publishes the iteration's model, compares it with the best so far and decides whether the run goes on; its
artifacts are the model's address, metrics, sampled answers and the report.
generate-and-score and train-and-validate are two of these steps in one pod, where cluster.fuse asked for it.
evaluate runs benchmark tasks or a judge, where configured; control trains as often on the human answers alone.
result shows the final metrics, the best model and the final report, also of a run that stopped early or failed."""


def describe_pipeline(settings: Settings, max_iterations: int) -> str:
    """What the pipeline and this version of it do, need and leave, for their pages in the UI."""
    epochs = ", ".join(dict.fromkeys(str(settings.spin.epochs(t)) for t in range(max_iterations)))
    shards = settings.generation.shards or "by tokens"
    return f"""\
Self-play fine-tuning (SPIN) of a language model: each iteration trains the model to prefer human answers over its own.
spin-pipelines {__version__}, configuration {settings.run.name!r}: up to {max_iterations} iterations, epochs {epochs}, \
shards {shards}, nodes {settings.hardware.nodes}; base model {settings.model.base}, data \
{settings.data.train}.

To start: set base_model, data_train and run_uri. {{id}} in run_uri is KFP's id of the run, so each run has storage of \
its own.
To resume a run, also one that failed: start another with run_uri set to the address of the first, which is an output
of its task prepare. Finished steps are not done again.
Other settings: settings_SECTION takes JSON such as {{"lr_schedule": "linear"}}, whose keys win over all defaults.

{_STEPS}"""
