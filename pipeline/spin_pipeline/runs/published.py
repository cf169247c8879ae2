"""Published models of a run: look one up to export it or to start another run from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spin_components.errors import ConfigError, IntegrityError
from spin_components.model.lora.files import CONFIG
from spin_components.model.stored import model_files
from spin_components.record.decisions import name_of
from spin_components.record.pointers import read_pointer
from spin_components.settings.inheritance import inherited
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.digests import FileDigest, digest_of
from spin_components.store.keys import shown
from spin_components.store.manifests import read_manifest


@dataclass(frozen=True, slots=True)
class Published:
    """A published model: the policy of an iteration with a checkpoint manifest, of the warm-up, or the base model.

    Attributes:
        iteration: its number; `layout.BASE` for the base model, `layout.WARM_UP` for the warm-up.
        uri: address of the policy.
        facts: the facts of the checkpoint manifest; empty for the other models.
        files: digests of the policy's files, by name.
    """

    iteration: int
    uri: str
    facts: dict[str, Any]
    files: dict[str, FileDigest]

    @property
    def name(self) -> str:
        """For messages: `iteration 2`, or that of the base model."""
        return name_of(self.iteration)

    @property
    def sha256(self) -> str:
        """Digest over the policy's files."""
        return digest_of(self.files)


def published_iterations(run: RunStore) -> list[int]:
    """Numbers of the published iterations, in order."""
    numbers = (key.split("/")[1] for key in run.list("iterations", "*/checkpoint.json"))
    return sorted(int(number) for number in numbers if layout.is_number(number))


def find_published(run: RunStore, which: str) -> Published:
    """Look up the model of an iteration.

    Args:
        run: the run.
        which: number of the iteration, `warm-up`, or `best`, which may be the base model.

    Raises:
        ConfigError: there is no run, or no such iteration.
        IntegrityError: its weights were deleted, or the run is damaged.
    """
    if not run.exists(layout.RUN):
        raise ConfigError(f"no run at {run.uri}: it has no {layout.RUN}")
    finished = published_iterations(run)
    if which == _WARM_UP or (finished and which == "best" and _best(run) == layout.WARM_UP):
        return _warm_up(run)
    if not finished:
        raise ConfigError(f"no iteration of {run.uri} is finished yet; see `spin-pipeline status {run.uri}`")
    iteration = _best(run) if which == "best" else _number(which)
    if iteration == layout.BASE:
        base = str(run.read_json(layout.RUN)["base_model"]["uri"])
        return Published(iteration, base, {}, model_files(run, base))
    if iteration not in finished:
        raise ConfigError(f"iteration {which} of {run.uri} is not finished; finished: {', '.join(map(str, finished))}")
    facts = read_manifest(run, layout.checkpoint(iteration)).facts
    uri = facts.get("checkpoint_uri")
    key = run.key_of(uri) if isinstance(uri, str) and uri else None
    if not isinstance(uri, str) or key is None or layout.epoch_of(key) is None:
        raise IntegrityError(
            f"{run.uri_of(layout.checkpoint(iteration))} names {shown(str(uri))}, which is outside the run or not a "
            "policy; restore the original manifest"
        )
    if not run.sizes(key):
        top_k = run.read_json(layout.RUN)["settings"].get("selection", {}).get("save_top_k")
        raise IntegrityError(
            f"the weights of iteration {iteration} are no longer at {uri}: only the best iterations "
            f"(selection.save_top_k = {top_k}), the last one and the best model are kept. Choose one of those"
        )
    return Published(iteration, uri, facts, model_files(run, uri))


_WARM_UP = "warm-up"


def _warm_up(run: RunStore) -> Published:
    """The policy of the warm-up."""
    if not run.exists(layout.WARM_UP_MANIFEST):
        raise ConfigError(f"{run.uri} has no finished warm-up; name an iteration, or best")
    facts = read_manifest(run, layout.WARM_UP_MANIFEST).facts
    if facts["epoch"] is None:
        raise ConfigError(f"the warm-up of {run.uri} lowered no loss, and has no model; the base model is as it was")
    uri = run.resolve(str(facts["policy_uri"]))
    return Published(layout.WARM_UP, uri, {}, model_files(run, uri))


def _best(run: RunStore) -> int:
    best = read_pointer(run, layout.BEST).get("iteration")
    if type(best) is int:
        return best
    raise IntegrityError(
        f"{run.uri_of(layout.BEST)}: iteration is {shown(str(best))}, expected a number; name an --iteration, or "
        "resume the run, which writes it anew"
    )


def _number(which: str) -> int:
    if not layout.is_number(which):
        raise ConfigError(f"--iteration {which}: expected a number, best, or warm-up")
    return int(which)


def forked_values(run: RunStore, which: str) -> dict[str, Any]:
    """Settings of a new run that starts from an iteration of another: the other's settings, with that policy as base.

    A warm-up is not done again. Settings that lead to code or to an address are not taken over; see
    `settings.inheritance`.

    Args:
        run: the other run.
        which: number of the iteration, `warm-up`, or `best`.

    Returns: tables by section, without `run.uri`.

    Raises: as `find_published`.
    """
    published = find_published(run, which)
    recorded = run.read_json(layout.RUN).get("settings")
    values = inherited(recorded, source=run.uri_of(layout.RUN))
    values.pop("warm_up", None)
    model = {**values.get("model", {}), **forked_model(run, published)}
    return {**values, "model": model, **kept_tasks(run, values)}


def kept_tasks(run: RunStore, values: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`[evaluation]` with the copy of the task files that a run holds; empty if it holds none.

    Args:
        run: the recorded run.
        values: its tables, see `inherited`.
    """
    evaluation = values.get("evaluation", {})
    if not evaluation.get("tasks") or not run.exists(layout.inputs_manifest("tasks")):
        return {}
    return {"evaluation": {**evaluation, "task_files": run.uri_of(layout.TASKS)}}


def forked_model(run: RunStore, published: Published) -> dict[str, Any]:
    """Values of `[model]` for a run that starts from a published model.

    Raises:
        ConfigError: the policy is stored as an adapter, not as a whole model.
    """
    if CONFIG in published.files:
        raise ConfigError(
            f"{published.uri} is stored as an adapter (lora.export = 'adapter'), but a run needs a whole model. "
            f"Write one with `spin-pipeline export {run.uri} DEST --iteration {published.iteration}`, and set "
            "model.base to it"
        )
    return {
        "base": published.uri,
        "sha256": published.sha256,
        "forked_from": f"{run.uri}, {published.name}",
    }
