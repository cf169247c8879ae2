"""Which pairs a rank reads for an epoch, and how they are dealt; nothing is trained here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spin_components.algorithm.packing import PACKED
from spin_components.algorithm.trainer_state import TrainerState
from spin_components.record.pairs import ScoredPairs
from spin_components.record.training_pairs import TrainingPairs, load_training_pairs
from spin_components.settings.settings import Settings
from spin_components.store.local import LocalRun
from spin_components.training.job import EpochJob
from spin_components.training.loop import EpochLoop, epoch_batches
from support.stored_pairs import pair, write_data, write_generations, write_scores

NUM, GLOBAL_BATCH = 32, 8


class Recorded(TrainingPairs):
    """Pairs that remember, by rank, which were read."""

    reads: list[list[int]] = []  # noqa: RUF012  a class attribute, since instances are frozen

    def read(self, indices: Iterable[int]) -> ScoredPairs:
        chosen = list(indices)
        Recorded.reads.append(chosen)
        return super().read(chosen)


@pytest.fixture
def data(tmp_path: Path) -> Recorded:
    run = LocalRun(tmp_path / "run")
    write_data(run, num_shards=1)
    write_generations(run, 0, 0, [pair(index, 0) for index in range(NUM)])
    write_scores(run, 0, 0, [(index, 0, index // GLOBAL_BATCH) for index in range(NUM)], origins=[0])
    whole = load_training_pairs(run, 0)
    Recorded.reads = []
    return Recorded(*(getattr(whole, field.name) for field in fields(TrainingPairs)))


def job(first_step: int) -> EpochJob:
    sizes = {"global_batch_size": GLOBAL_BATCH, "micro_batch_size": 2}
    settings = {"model": {"base": "m"}, "data": {"train": "d"}, "training": sizes}
    folder = Path("policy")
    return EpochJob(
        run_uri="run",
        attempt="a",
        iteration=0,
        epoch=0,
        policy=folder,
        like=folder,
        trainer=None,
        scratch=folder,
        first_step=first_step,
        state=TrainerState(),
        inputs={},
        settings=Settings.model_validate(settings),
    )


def begin(data: Recorded, *, rank: int = 0, ranks: int = 1, first_step: int = 0, attention: str = PACKED) -> EpochLoop:
    model = SimpleNamespace(config=SimpleNamespace(_attn_implementation=attention))
    backend: Any = SimpleNamespace(rank=rank, ranks=ranks, model=model)
    step: Any = SimpleNamespace(progress=lambda *_, **__: None)
    saver: Any = SimpleNamespace()
    return EpochLoop(job(first_step), backend, data, step, saver)


def test_an_epoch_that_is_resumed_reads_nothing_of_the_steps_before(data: Recorded) -> None:
    begin(data, first_step=3)
    assert sorted(Recorded.reads[0]) == sorted(epoch_batches(job(3), data)[3])
    begin(data)
    assert sorted(Recorded.reads[1]) == list(range(NUM))


@pytest.mark.parametrize("attention", [PACKED, "sdpa"])
def test_each_rank_reads_its_own_pairs_and_no_others(data: Recorded, attention: str) -> None:
    for rank in range(4):
        begin(data, rank=rank, ranks=4, attention=attention)
    assert [len(indices) for indices in Recorded.reads] == [NUM // 4] * 4
    assert sorted(index for indices in Recorded.reads for index in indices) == list(range(NUM))


def test_packed_ranks_have_as_many_tokens_each(data: Recorded) -> None:
    # a prompt of index + 1 tokens counts once in a packed batch: index + 1, and 3 + 2 + index % 3 of the answers
    tokens = data.num_packed.tolist()
    assert tokens == [index + 1 + 5 + index % 3 for index in range(NUM)]
    spread = {}
    for attention in (PACKED, "sdpa"):
        Recorded.reads = []
        for rank in range(4):
            begin(data, rank=rank, ranks=4, attention=attention)
        sums = [sum(tokens[index] for index in indices) for indices in Recorded.reads]
        spread[attention] = max(sums) / (sum(sums) / 4)
    assert spread[PACKED] < 1.02 < spread["sdpa"]
