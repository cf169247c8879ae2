"""What the processes that score a shard are given, as JSON."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from spin_components.settings.settings import Settings


class Share(BaseModel):
    """What one process scores.

    Attributes:
        pairs: Parquet file of its pairs.
        batches: indices among them, by micro-batch.
        with_protos: whether the pairs are triplets, see `data.triplets`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pairs: Path
    batches: list[tuple[int, ...]]
    with_protos: bool = False


class ScoringJob(BaseModel):
    """What all processes score.

    Attributes:
        where: for errors.
        folder: of the model, as `model.stored.open_scored` returns it.
        shares: of each process.
        settings: of the run.
        is_sharded: whether the model's weights are divided among the processes; else each has all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    where: str
    folder: Path
    shares: list[Share]
    settings: Settings
    is_sharded: bool = False
