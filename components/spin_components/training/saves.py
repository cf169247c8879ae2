"""The files of an epoch's saves: inside it at an interval, and at its end.

    policy/                        weights in Hugging Face layout: of a finished epoch, or of a save by one rank
    adapter/                       with `lora.r`, in its place or beside it
    trainer/                       by one rank: counters, metrics, rewards, random state, and optimizer-*.safetensors
    trainer/rank-00001-of-00004/   by several, each with its parts: optimizer-*.safetensors and, inside an epoch without
                                   an adapter, weights-*.safetensors; the first rank's also has the rest

See `training.parts` for the parts, `training.publishing` for the policy, and `training.saver` for how they are stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from spin_components.algorithm.trainer_state import TrainerState
from spin_components.data.row_columns import RowColumns
from spin_components.data.shards import PairReward
from spin_components.data.stored_rows import read_numbers
from spin_components.errors import IntegrityError
from spin_components.record.chat_template import read_chat_template
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.digests import FileDigest
from spin_components.training.adapter import write_trained
from spin_components.training.backend import Backend
from spin_components.training.job import EpochJob
from spin_components.training.parts import Parts, write_parts
from spin_components.training.publishing import write_policy

_STATE, _ROWS, _REWARDS, _RNG = "state.json", "metrics.json", "rewards.parquet", "rng.safetensors"
_OPTIMIZER, _WEIGHTS = "optimizer", "weights"


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


@dataclass(frozen=True, slots=True)
class SavedTrainer:
    """The trainer's files of a save.

    Attributes:
        folder: with counters, metrics, rewards and random state.
        parts: files of weights and optimizer state of all ranks.
    """

    folder: Path
    parts: tuple[Path, ...]

    @classmethod
    def find(cls, folder: Path, outputs: Iterable[str]) -> SavedTrainer:
        """Find them among the outputs of a manifest; other files there are of tries that wrote none.

        Args:
            folder: that the outputs are below.
            outputs: paths relative to it.

        Raises:
            IntegrityError: the manifest names no trainer's state.
        """
        names = sorted(name for name in outputs if name.startswith("trainer/"))
        state = next((name for name in names if name.endswith(f"/{_RNG}")), None)
        if state is None:
            raise IntegrityError(
                f"the manifest of the save in {folder} names no {_RNG}, expected one below trainer/; delete the "
                "manifest to train the epoch again"
            )
        stems = (f"{_OPTIMIZER}-", f"{_WEIGHTS}-")
        parts = tuple(folder / name for name in names if name.rpartition("/")[2].startswith(stems))
        return cls((folder / state).parent, parts)


def part_of(rank: int, ranks: int) -> str:
    """Folder of a rank's part of the trainer's state, below the key of a save."""
    return "trainer" if ranks == 1 else f"trainer/rank-{rank:05d}-of-{ranks:05d}"


def delete_saves(run: RunStore, iteration: int, epoch: int) -> None:
    """Delete the saves inside an epoch that is finished."""
    run.delete(layout.partial(iteration, epoch))
    run.delete(f"{layout.epoch(iteration, epoch)}/partial")


def write_save(
    run: RunStore, job: EpochJob, backend: Backend, trained: Trained, folder: Path, *, is_whole: bool = False
) -> None:
    """Write this rank's `trainer/` and what it writes of `policy/` or `adapter/`; every rank calls it.

    With an adapter, `adapter/` alone is written inside an epoch, and at its end beside the policy or in its place.

    Args:
        run: the run.
        job: the epoch.
        backend: of this rank.
        trained: so far.
        folder: to be created on this machine's disk.
        is_whole: whether the epoch is finished.
    """
    write_parts(folder / "trainer", _OPTIMIZER, backend.optimizer_parts())
    if job.adapter:
        weights = backend.trained_state()
        if weights is not None:
            module = getattr(backend.model, "module", backend.model)
            write_trained(job, job.adapter, module, weights, folder, is_whole=is_whole)
    elif is_whole or backend.ranks == 1:
        write_policy(backend, job.like, folder / "policy")
    else:
        write_parts(folder / "trainer", _WEIGHTS, backend.weight_parts())
    if backend.rank == 0:
        _write_trainer(folder / "trainer", trained)
        if (folder / "policy").is_dir() and (template := read_chat_template(run)) is not None:
            (folder / "policy/chat_template.jinja").write_bytes(template.encode())


def write_summary(run: RunStore, job: EpochJob, trained: Trained, metrics: dict[str, Any]) -> dict[str, FileDigest]:
    """Store the metrics of a finished epoch and, of self-play, the rewards; returns their digests by key."""
    with run.staged(f"{layout.epoch(job.iteration, job.epoch)}/metrics.json") as staged:
        staged.path.write_text(json.dumps({"summary": metrics, "steps": trained.rows}, indent=2), "utf-8")
    outputs = dict(staged.outputs)
    if job.iteration >= 0:
        with run.staged(layout.rewards(job.iteration, job.epoch)) as staged:
            trained.rewards.write(staged.path)
        outputs |= staged.outputs
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


def weight_parts(job: EpochJob) -> Parts | None:
    """The weights of the save that the job names; None where its policy's folder has them."""
    files = [path for path in job.parts if path.name.startswith(f"{_WEIGHTS}-")]
    return Parts(files) if files else None


def load_trainer(job: EpochJob, backend: Backend) -> None:
    """Load optimizer state and random state from the save that the job names."""
    if job.trainer is None:
        return
    files = [path for path in job.parts if path.name.startswith(f"{_OPTIMIZER}-")]
    backend.load_optimizer(Parts(files), job.state.num_updates)
    torch.set_rng_state(load_file(job.trainer / _RNG)["torch"])
