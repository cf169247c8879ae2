"""Saves of an epoch: inside it as often as asked, at its end always; each whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from spin_components.algorithm.trainer_state import TrainerState
from spin_components.data.shards import PairReward, read_rows, write_rows
from spin_components.execution import Step
from spin_components.modeling import save_policy
from spin_components.store import layout
from spin_components.store.digests import FileDigest
from spin_components.store.manifests import Manifest
from spin_components.store.run import RunStore
from spin_components.train_epoch.adapter import write_trained
from spin_components.train_epoch.backend import Backend
from spin_components.train_epoch.job import EpochJob

_STATE, _ROWS, _REWARDS, _RNG = "state.json", "metrics.json", "rewards.parquet", "rng.safetensors"


def _write_trainer(folder: Path, state: TrainerState, rows: list[dict[str, Any]], rewards: list[PairReward]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _STATE).write_text(state.model_dump_json(), encoding="utf-8")
    (folder / _ROWS).write_text(json.dumps(rows), encoding="utf-8")
    write_rows(folder / _REWARDS, PairReward, rewards)
    save_file({"torch": torch.get_rng_state()}, folder / _RNG)


def _write(
    current: Step,
    job: EpochJob,
    backend: Backend,
    state: TrainerState,
    rows: list[dict[str, Any]],
    rewards: list[PairReward],
    key: str,
    *,
    is_whole: bool = False,
) -> dict[str, FileDigest]:
    """Write `policy/` and `trainer/` below a key; returns their digests, by key below the run (rank 0).

    Where an adapter is trained, it is written beside the policy or in its place, and alone while the epoch goes on.
    """
    weights = backend.trained_state() if job.adapter else backend.policy_state()
    folder = job.scratch
    backend.save_optimizer(folder / "trainer")
    outputs: dict[str, FileDigest] = {}
    if backend.rank == 0 and weights is not None:
        _write_trainer(folder / "trainer", state, rows, rewards)
        module = getattr(backend.model, "module", backend.model)
        if job.adapter:
            write_trained(job, job.adapter, module, weights, folder, is_whole=is_whole)
        else:
            save_policy(module, weights, job.like, folder / "policy")
        for part in sorted(path.name for path in folder.iterdir()):
            with current.run.staged(f"{key}/{part}") as staged:
                (folder / part).replace(staged.path)
            outputs |= staged.outputs
        folder.rmdir()
    return outputs


def save_partial(
    current: Step,
    job: EpochJob,
    backend: Backend,
    state: TrainerState,
    rows: list[dict[str, Any]],
    rewards: list[PairReward],
    done: int,
) -> None:
    """Save inside an epoch, after `done` of its steps; the save before it is removed when this one stands."""
    key = f"{layout.epoch(job.iteration, job.epoch)}/partial/{done}"
    outputs = _write(current, job, backend, state, rows, rewards, key)
    if backend.rank == 0:
        facts = {"done": done, "state": state.model_dump(mode="json"), "key": key}
        manifest = Manifest(step="train-epoch (partial)", inputs=job.inputs, outputs=outputs, facts=facts)
        current.commit(layout.partial(job.iteration, job.epoch), manifest)
        current.events.write("save", done=done)
        saves = current.run.sizes(f"{layout.epoch(job.iteration, job.epoch)}/partial")
        for other in {"/".join(name.split("/")[:6]) for name in saves} - {key}:
            current.run.delete(other)


def save_epoch(
    current: Step,
    job: EpochJob,
    backend: Backend,
    state: TrainerState,
    rows: list[dict[str, Any]],
    rewards: list[PairReward],
    facts: dict[str, Any],
) -> None:
    """Commit a finished epoch: weights, trainer state, metrics, rewards, then the manifest; saves inside it go."""
    key = layout.epoch(job.iteration, job.epoch)
    outputs = _write(current, job, backend, state, rows, rewards, key, is_whole=True)
    if backend.rank == 0:
        metrics = f"{key}/metrics.json"
        with current.run.staged(metrics) as staged:
            staged.path.write_text(json.dumps({"summary": facts["metrics"], "steps": rows}, indent=2), "utf-8")
        outputs |= staged.outputs
        with current.run.staged(layout.rewards(job.iteration, job.epoch)) as staged:
            write_rows(staged.path, PairReward, rewards)
        outputs |= staged.outputs
        facts = {**facts, "state": state.model_dump(mode="json"), "policy_uri": current.run.uri_of(f"{key}/policy")}
        current.finish(layout.epoch_manifest(job.iteration, job.epoch), inputs=job.inputs, outputs=outputs, facts=facts)
        clear_partial(current.run, job.iteration, job.epoch)


def clear_partial(run: RunStore, iteration: int, epoch: int) -> None:
    """Remove the saves inside an epoch that is finished."""
    run.delete(layout.partial(iteration, epoch))
    run.delete(f"{layout.epoch(iteration, epoch)}/partial")


def load_rows(job: EpochJob) -> list[dict[str, Any]]:
    """Metrics of the steps of this epoch that an earlier attempt did."""
    if not job.first_step or job.trainer is None:
        return []
    rows: list[dict[str, Any]] = json.loads((job.trainer / _ROWS).read_text("utf-8"))
    return rows


def load_rewards(job: EpochJob) -> list[PairReward]:
    """Rewards of the pairs of this epoch that an earlier attempt trained on; none where that did not keep them."""
    if not job.first_step or job.trainer is None or not (job.trainer / _REWARDS).exists():
        return []
    return read_rows(job.trainer / _REWARDS, PairReward)


def load_trainer(job: EpochJob, backend: Backend) -> None:
    """Take up optimizer state and random state from the save that the job names."""
    if job.trainer is None:
        return
    backend.load_optimizer(job.trainer, job.state.num_updates)
    torch.set_rng_state(load_file(job.trainer / _RNG)["torch"])
