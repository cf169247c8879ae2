"""What the processes that validate a policy are given, as JSON."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from spin_components.settings.settings import Settings


class Part(BaseModel):
    """What one process measures.

    Attributes:
        batches: of prompts whose human answers it scores, by their places in the file.
        sampled: places of the prompts that it answers.
        numbers: of these among all prompts that are answered.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batches: list[list[int]]
    sampled: list[int]
    numbers: list[int]


class ValidationJob(BaseModel):
    """What all processes measure.

    Attributes:
        where: for errors.
        folder: of the policy, as `model.stored.open_scored` returns it.
        plain: of the policy, as `model.stored.open_model` returns it.
        prompts: Parquet file of the held-out records.
        parts: of each process.
        eos_ids: ids that end an answer.
        seed: of the answers.
        reference: token ids of the reference's answers, by index of the prompt; None for the base model.
        settings: of the run.
        is_sharded: whether the model's weights are divided among the processes; else each has all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    where: str
    folder: Path
    plain: Path
    prompts: Path
    parts: list[Part]
    eos_ids: list[int]
    seed: int
    reference: dict[int, list[int]] | None
    settings: Settings
    is_sharded: bool = False
