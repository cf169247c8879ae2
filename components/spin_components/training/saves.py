"""Saves of an epoch: inside it at an interval, and at its end. A save is stored whole or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from spin_components.algorithm.trainer_state import TrainerState
from spin_components.data.row_columns import RowColumns
from spin_components.data.shards import PairReward
from spin_components.data.stored_rows import read_numbers
from spin_components.model.loading import save_policy
from spin_components.record.chat_template import read_chat_template
from spin_components.runtime.step import Step
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.digests import FileDigest
from spin_components.store.manifests import Manifest
from spin_components.training.adapter import write_trained
from spin_components.training.backend import Backend
from spin_components.training.job import EpochJob

_STATE, _ROWS, _REWARDS, _RNG = "state.json", "metrics.json", "rewards.parquet", "rng.safetensors"


@dataclass
class Trained:
    """What an epoch's steps so far have given, beside weights and optimizer state.

    Attributes:
        state: counters after the last step.
        rows: metrics of each step.
        rewards: of each pair.
    """

    state: TrainerState
    rows: list[dict[str, Any]]
    rewards: RowColumns[PairReward]


def save_partial(step: Step, job: EpochJob, backend: Backend, trained: Trained, done: int) -> None:
    """Save inside an epoch, after `done` of its steps; then the save before it is deleted."""
    key = f"{layout.epoch(job.iteration, job.epoch)}/partial/{done}"
    outputs = _write(step.run, job, backend, trained, key)
    if backend.rank == 0:
        facts = {"done": done, "state": trained.state.model_dump(mode="json"), "key": key}
        manifest = Manifest(step=f"{job.step} (partial)", inputs=job.inputs, outputs=outputs, facts=facts)
        step.commit(layout.partial(job.iteration, job.epoch), manifest)
        step.events.write("save", done=done)
        folder = f"{layout.epoch(job.iteration, job.epoch)}/partial"
        saves = {name.removeprefix(f"{folder}/").partition("/")[0] for name in step.run.sizes(folder)}
        for other in {f"{folder}/{name}" for name in saves} - {key}:
            step.run.delete(other)


def save_epoch(step: Step, job: EpochJob, backend: Backend, trained: Trained, facts: dict[str, Any]) -> None:
    """Publish a finished epoch: weights, trainer state, metrics and rewards, then the manifest."""
    key = layout.epoch(job.iteration, job.epoch)
    outputs = _write(step.run, job, backend, trained, key, is_whole=True)
    if backend.rank == 0:
        with step.run.staged(f"{key}/metrics.json") as staged:
            metrics = {"summary": facts["metrics"], "steps": trained.rows}
            staged.path.write_text(json.dumps(metrics, indent=2), "utf-8")
        outputs |= staged.outputs
        if job.iteration >= 0:
            with step.run.staged(layout.rewards(job.iteration, job.epoch)) as staged:
                trained.rewards.write(staged.path)
            outputs |= staged.outputs
        state = trained.state.model_dump(mode="json")
        step.publish({**facts, "state": state, "policy_uri": step.run.uri_of(f"{key}/policy")}, outputs=outputs)


def delete_saves(run: RunStore, iteration: int, epoch: int) -> None:
    """Delete the saves inside an epoch that is finished."""
    run.delete(layout.partial(iteration, epoch))
    run.delete(f"{layout.epoch(iteration, epoch)}/partial")


def _write(
    run: RunStore, job: EpochJob, backend: Backend, trained: Trained, key: str, *, is_whole: bool = False
) -> dict[str, FileDigest]:
    """Write `policy/` and `trainer/` below a key; every rank calls it.

    With an adapter, `adapter/` alone is written inside an epoch, and at its end beside the policy or in its place.

    Returns: digests by key below the run, on rank 0.
    """
    weights = backend.trained_state() if job.adapter else backend.policy_state()
    folder = job.scratch
    backend.save_optimizer(folder / "trainer")
    outputs: dict[str, FileDigest] = {}
    if backend.rank == 0 and weights is not None:
        _write_trainer(folder / "trainer", trained)
        module = getattr(backend.model, "module", backend.model)
        if job.adapter:
            write_trained(job, job.adapter, module, weights, folder, is_whole=is_whole)
        else:
            save_policy(module, weights, job.like, folder / "policy")
        if (folder / "policy").is_dir() and (template := read_chat_template(run)) is not None:
            (folder / "policy/chat_template.jinja").write_bytes(template.encode())
        for part in sorted(path.name for path in folder.iterdir()):
            with run.staged(f"{key}/{part}") as staged:
                (folder / part).replace(staged.path)
            outputs |= staged.outputs
        folder.rmdir()
    return outputs


def _write_trainer(folder: Path, trained: Trained) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _STATE).write_text(trained.state.model_dump_json(), encoding="utf-8")
    (folder / _ROWS).write_text(json.dumps(trained.rows), encoding="utf-8")
    trained.rewards.write(folder / _REWARDS)
    save_file({"torch": torch.get_rng_state()}, folder / _RNG)


def load_rows(job: EpochJob) -> list[dict[str, Any]]:
    """Metrics of the steps of this epoch that were done before the save."""
    if not job.first_step or job.trainer is None:
        return []
    rows: list[dict[str, Any]] = json.loads((job.trainer / _ROWS).read_text("utf-8"))
    return rows


def load_rewards(job: EpochJob) -> RowColumns[PairReward]:
    """Rewards of the pairs that were trained on before the save; empty where an older version saved none."""
    rewards = RowColumns(PairReward)
    if job.first_step and job.trainer is not None and (path := job.trainer / _REWARDS).exists():
        for name, values in read_numbers([path], PairReward).items():
            rewards.set_column(name, values)
    return rewards


def load_trainer(job: EpochJob, backend: Backend) -> None:
    """Load optimizer state and random state from the save that the job names."""
    if job.trainer is None:
        return
    backend.load_optimizer(job.trainer, job.state.num_updates)
    torch.set_rng_state(load_file(job.trainer / _RNG)["torch"])
