"""Saves of several ranks, each with a part of its own, in a bucket behind a proxy that holds or drops requests."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from faults.harms import Rule
from faults.proxy import Proxy
from spin_components.errors import StorageError
from spin_components.record.events import EventTail
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.lease import read_lease
from spin_components.store.manifests import Manifest, read_manifest
from spin_components.store.open import open_run
from spin_components.train_epoch.step import train
from support import bounds
from support.epoch_process import start_epoch
from support.gate import Gate
from support.playing import begin, losses, play_scores
from support.s3_server import BUCKET, S3Server
from support.small import small_settings
from support.wide_llama import make_wide_llama

pytestmark = pytest.mark.usefixtures("warm_python")

POINTER = r"PUT .*/epochs/0/partial\.json"
STEPS = 3


@dataclass
class Epoch:
    """The first epoch of a run in a bucket, with a save after each of its first two steps."""

    settings: Settings
    reference: str
    scores: list[str]
    run: RunStore
    proxy: Proxy

    def hardware(self, ranks: int, **changes: Any) -> dict[str, Any]:
        table = {"device": "cpu", "ranks": ranks, "threads": 1, **changes}
        return {**self.settings.hardware.model_dump(mode="json"), **table}

    def train(self, ranks: int, **changes: Any) -> None:
        train(self.settings.run.uri, 0, 0, self.reference, self.scores, self.hardware(ranks, **changes))

    def start(self, ranks: int, **changes: Any) -> subprocess.Popen[bytes]:
        return start_epoch(self.settings.run.uri, self.reference, self.scores, self.hardware(ranks, **changes))

    def kill_at(self, ranks: int, request: str, *, harm: str = "strike before", skip: int = 0) -> None:
        """Train, and kill every process at a request; ranks that die a moment later repeat it in vain."""
        processes: list[subprocess.Popen[bytes]] = []
        rule = Rule(request, harm, skip=skip, times=sys.maxsize, strike=lambda: processes[0].kill())
        self.proxy.reset(rule)
        processes.append(self.start(ranks))
        processes[0].wait()
        self.proxy.reset()
        while (lease := read_lease(self.run)) and lease.remaining_s:  # by a rank that was not reaped yet
            time.sleep(0.05)

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.run, layout.epoch_manifest(0, 0))

    def steps_done(self) -> int:
        """Steps with metrics among the events."""
        return len({event["global_step"] for event in EventTail(self.run).new() if event["kind"] == "metrics"})

    def resumed_at(self) -> list[int]:
        return [event["done"] for event in EventTail(self.run).new() if event["kind"] == "resume"]

    def begin_again(self) -> None:
        """Delete what the epoch has written."""
        self.run.delete(layout.epoch(0, 0))


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with closing(Proxy(s3.port)) as proxy:
        monkeypatch.setenv("S3_ENDPOINT", proxy.endpoint)
        yield proxy


class Epochs:
    """Makes prepared runs."""

    def __init__(self, folder: Path, tiny_llama: Path, question_file: Path, proxy: Proxy) -> None:
        self._folder, self._tiny_llama, self._question_file, self._proxy = folder, tiny_llama, question_file, proxy
        self._opened: list[RunStore] = []

    def make(self, *, is_tied: bool, **training: Any) -> Epoch:
        model = make_wide_llama(self._folder / "wide", self._tiny_llama, is_tied=is_tied)
        settings = small_settings(
            f"s3://{BUCKET}/run",
            model,
            self._question_file,
            data={"max_train_records": 8 * STEPS},
            generation={"max_new_tokens": 8},
            validation={"num_samples": 0},
            training={"zero_stage": 2, "micro_batch_size": 2, "save_interval": 1, **training},
        )
        reference = begin(settings)
        scores = play_scores(settings, 0, reference)
        self._opened.append(open_run(settings.run.uri))
        return Epoch(settings, reference, scores, self._opened[0], self._proxy)

    def close(self) -> None:
        for run in self._opened:
            run.close()


@pytest.fixture
def epochs(tmp_path: Path, tiny_llama: Path, question_file: Path, proxy: Proxy) -> Iterator[Epochs]:
    with closing(Epochs(tmp_path, tiny_llama, question_file, proxy)) as made:
        yield made


@pytest.mark.parametrize(
    ("stage", "ranks", "is_tied", "precision"),
    [(2, 2, True, "bf16"), (3, 2, False, "float32"), (3, 4, True, "bf16")],
)
def test_killed_between_the_parts_and_the_manifest_the_save_before_gives_the_same_bits(
    epochs: Epochs, stage: int, ranks: int, is_tied: bool, precision: str
) -> None:
    epoch = epochs.make(is_tied=is_tied, zero_stage=stage, precision=precision)
    epoch.train(ranks)
    expected, expected_losses = epoch.manifest.outputs, losses(epoch.run)
    assert not epoch.run.exists(layout.partial(0, 0))
    epoch.begin_again()

    epoch.kill_at(ranks, POINTER, skip=1)
    folder = f"{layout.epoch(0, 0)}/partial"
    partial = read_manifest(epoch.run, layout.partial(0, 0))
    assert (partial.facts["done"], epoch.run.exists(layout.epoch_manifest(0, 0))) == (1, False)
    assert partial.outputs.keys() <= epoch.run.sizes(folder).keys(), "the save that counts keeps its files"
    for rank in range(ranks):  # the second save lacks nothing but its manifest
        part = f"{folder}/2/trainer/rank-{rank:05d}-of-{ranks:05d}"
        names = {key.removeprefix(f"{part}/").partition("-")[0] for key in epoch.run.sizes(part)}
        assert {"optimizer", "weights"} <= names

    epoch.train(ranks)
    assert epoch.resumed_at() == [1]
    assert losses(epoch.run) == expected_losses
    found = epoch.manifest.outputs
    assert found.keys() == expected.keys()
    kept = {key for key in expected if not key.endswith("metrics.json")}  # which have the time of each step
    assert {key: found[key] for key in kept} == {key: expected[key] for key in kept}
    assert not epoch.run.sizes(folder)


def test_training_goes_on_while_the_part_of_one_rank_is_stored(epochs: Epochs, tiny_llama: Path) -> None:
    epoch = epochs.make(is_tied=False, zero_stage=3)
    epoch.train(2)
    expected = losses(epoch.run)
    epoch.begin_again()

    before = epoch.steps_done()
    limit_s = 15.0
    gate = Gate(r"(PUT|POST) .*/partial/1/trainer/rank-00001")
    epoch.proxy.reset(gate.rule)
    process = epoch.start(2, collective_timeout=limit_s)
    try:
        gate.wait(process)
        held = time.monotonic()
        tail = EventTail(epoch.run, skip=True)
        steps: set[int] = set()
        while max(steps, default=0) < 2:  # the second step comes while the first save is on its way
            assert process.poll() is None
            steps |= {event["global_step"] for event in tail.new() if event["kind"] == "metrics"}
            time.sleep(0.1)
        while time.monotonic() < held + limit_s + 1:  # longer than ranks wait in a collective
            time.sleep(0.1)
        assert process.poll() is None
        assert not epoch.run.exists(layout.partial(0, 0)), "a save counts once all parts are stored"
        assert not epoch.run.sizes(f"{layout.epoch(0, 0)}/partial/2"), "one save at a time is on its way"
    finally:
        gate.open()
        code = process.wait()
    assert (before, code) == (STEPS, 0)
    assert losses(epoch.run) == expected


def test_a_part_that_cannot_be_stored_ends_the_step_with_that_error(
    epochs: Epochs, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = epochs.make(is_tied=True, zero_stage=2)
    monkeypatch.setenv("SPIN_STORAGE_DEADLINE_S", "3")
    epoch.proxy.reset(Rule(r"(PUT|POST) .*/partial/2/trainer/rank-00001", "drop", times=sys.maxsize))
    with pytest.raises(StorageError):
        epoch.train(2)
    epoch.proxy.reset()
    assert read_manifest(epoch.run, layout.partial(0, 0)).facts["done"] == 1
    assert not epoch.run.exists(layout.epoch_manifest(0, 0))


@pytest.mark.parametrize(
    ("stage", "before", "after"), [(3, 4, 2), (3, 2, 1), (2, 2, 1), (3, 1, 2), (2, 1, 2), (0, 2, 4)]
)
def test_a_save_is_resumed_by_any_number_of_ranks(epochs: Epochs, stage: int, before: int, after: int) -> None:
    epoch = epochs.make(is_tied=True, zero_stage=stage)
    epoch.train(before)
    expected = losses(epoch.run)
    epoch.begin_again()

    epoch.kill_at(before, POINTER, harm="strike after")
    epoch.train(after)
    assert epoch.resumed_at() == [1]
    # where a rank's micro-batches are others, sums are rounded otherwise
    model = Path(epoch.settings.model.base)
    assert losses(epoch.run) == pytest.approx(expected, abs=bounds.of_small_run(model, num_steps=STEPS, num_pairs=1))
    metrics = json.loads(epoch.run.read(f"{layout.epoch(0, 0)}/metrics.json") or b"{}")
    assert [row["step"] for row in metrics["steps"]] == [1, 2, 3]
