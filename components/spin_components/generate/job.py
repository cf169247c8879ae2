"""What the engines of a shard are given, as JSON."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from spin_components.engine.engine import Capacity
from spin_components.settings.settings import Settings


class GenerationJob(BaseModel):
    """What all engines answer.

    Attributes:
        where: for errors.
        engine: name, as `engine.open.choose_engine` returns it.
        folder: of the model.
        prompts: Parquet file of the shard's prompts.
        eos_ids: ids that end an answer.
        seed: of the shard.
        iteration: t.
        capacity: of each engine.
        on_gpu: whether they compute on GPUs, `generation.tensor_parallel` each.
        settings: of the run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    where: str
    engine: str
    folder: Path
    prompts: Path
    eos_ids: list[int]
    seed: int
    iteration: int
    capacity: Capacity | None
    on_gpu: bool
    settings: Settings
