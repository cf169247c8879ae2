"""Which model an evaluation is of."""

from __future__ import annotations

from dataclasses import dataclass

from spin_components.model.stored import validated_epoch
from spin_components.record.choice import choose_epoch
from spin_components.settings.selection import SelectionSettings
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import read_manifest


@dataclass(frozen=True, slots=True)
class Published:
    """A model to evaluate.

    Attributes:
        iteration: `layout.BASE` for the base model; also `layout.WARM_UP`, or the number of a control.
        epoch: of the iteration, whose policy it is.
        uri: of the model.
        global_step: optimizer steps that it has seen; None for a model whose steps are counted apart.
    """

    iteration: int
    epoch: int
    uri: str
    global_step: int | None


def published_model(run: RunStore, iteration: int) -> Published | None:
    """The model that an iteration published; None if it was stopped before, and for a control that has none.

    Args:
        run: the run.
        iteration: t, `layout.BASE`, or the number of a control.
    """
    if iteration == layout.BASE:
        return Published(iteration, 0, str(run.read_json(layout.RUN)["base_model"]["uri"]), 0)
    if (of := layout.controlled(iteration)) is not None:
        return _control(run, iteration, of)
    if not run.exists(layout.checkpoint(iteration)):
        return None
    facts = read_manifest(run, layout.checkpoint(iteration)).facts
    return Published(iteration, int(facts["epoch"]), str(facts["checkpoint_uri"]), int(facts["step"]))


def model_to_judge(
    run: RunStore, settings: Settings, rules: SelectionSettings, iteration: int, policy_uri: str
) -> Published:
    """The model whose evaluation a verdict needs: of a validated iteration the policy that it is going to publish.

    Args:
        run: the run.
        settings: of the run.
        rules: the attempt's `[selection]`.
        iteration: t, `layout.BASE` or `layout.WARM_UP`.
        policy_uri: of the warm-up's policy, which is the base model where the warm-up lowered no loss.
    """
    if iteration == layout.WARM_UP:
        number, epoch = validated_epoch(run, policy_uri)
        return Published(number, epoch, policy_uri, 0 if number == layout.BASE else None)
    if model := published_model(run, iteration):
        return model
    numbers = range(settings.spin.epochs(iteration))
    epoch = choose_epoch([read_manifest(run, layout.validation(iteration, number)) for number in numbers], rules.epoch)
    facts = read_manifest(run, layout.epoch_manifest(iteration, epoch)).facts
    return Published(iteration, epoch, run.resolve(str(facts["policy_uri"])), int(facts["state"]["step"]))


def has_weights(run: RunStore, uri: str) -> bool:
    """Whether a model's weights are in storage; those of a base model elsewhere are taken to be."""
    folder = run.key_of(uri)
    return folder is None or bool(run.sizes(folder))


def _control(run: RunStore, number: int, of: int) -> Published | None:
    """The control of iteration `of`; None until it is validated."""
    if not run.exists(layout.control_manifest(of)):
        return None
    facts = read_manifest(run, layout.control_manifest(of)).facts
    epoch = int(facts["epoch"])
    if not run.exists(layout.validation(number, epoch)):
        return None
    return Published(number, epoch, run.resolve(str(facts["policy_uri"])), None)
