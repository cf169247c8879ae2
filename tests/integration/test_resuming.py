"""Stopping and resuming: inside an epoch, and at the time limit."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from spin_components.errors import IntegrityError
from spin_components.runtime.signals import Interrupted
from spin_components.runtime.step import Step
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import read_manifest
from spin_components.train_epoch.step import train
from spin_components.training.loop import EpochLoop
from support.killed_run import play_until_saved
from support.playing import begin, hardware, losses, play, play_iteration, play_scores

MakeSettings = Callable[..., Settings]


def _train(settings: Settings, reference: str, scores: list[str]) -> None:
    train(settings.run.uri, 0, 0, reference, scores, hardware(settings))


@pytest.mark.usefixtures("warm_python")
@pytest.mark.parametrize(
    ("optimizer", "sizes"),
    [
        ("adamw", {"micro_batch_size": 1, "global_batch_size": 2}),
        ("rmsprop", {"micro_batch_size": 1, "global_batch_size": 2}),
        ("adamw", {"micro_batch_size": 4, "global_batch_size": 4, "micro_batch_tokens": 150}),
    ],
    ids=["adamw", "rmsprop", "micro-batches by tokens"],
)
def test_a_killed_epoch_resumes_from_its_last_save_with_the_same_result(
    make_settings: MakeSettings, tmp_path: Path, optimizer: str, sizes: dict[str, int]
) -> None:
    training = {"save_interval": 1, "optimizer": optimizer, **sizes}
    undisturbed = play(make_settings(run={"uri": str(tmp_path / "whole")}, training=training))
    settings = make_settings(training=training)
    reference = begin(settings)
    play_scores(settings, 0, reference)
    play_until_saved(settings, "train-epoch", 0, done=3)
    run = LocalRun(Path(settings.run.uri))
    assert run.exists(layout.partial(0, 0)), "it was to be killed inside the epoch"
    play_iteration(settings, 0, reference)
    assert losses(run) == losses(undisturbed)
    assert run.read(layout.rewards(0, 0)) == undisturbed.read(layout.rewards(0, 0))
    policies = [
        read_manifest(each, layout.epoch_manifest(0, 0)).outputs_below("iterations/0/epochs/0/policy")
        for each in (run, undisturbed)
    ]
    assert policies[0] == policies[1]
    assert not run.exists(layout.partial(0, 0))
    assert not list(run.root.rglob("*.part"))


@pytest.mark.usefixtures("warm_python")
def test_an_altered_save_is_detected_before_it_is_used(make_settings: MakeSettings) -> None:
    settings = make_settings(training={"save_interval": 1, "micro_batch_size": 1, "global_batch_size": 2})
    reference = begin(settings)
    scores = play_scores(settings, 0, reference)
    play_until_saved(settings, "train-epoch", 0, done=1)
    run = LocalRun(Path(settings.run.uri))
    save = run.read_json(layout.partial(0, 0))["facts"]["key"]
    optimizer = run.path(f"{save}/trainer/optimizer-00000.safetensors")
    content = bytearray(optimizer.read_bytes())
    content[-1] ^= 1
    optimizer.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"optimizer-00000.safetensors has SHA-256"):
        _train(settings, reference, scores)


def test_the_time_limit_stops_cleanly_and_the_same_settings_resume(make_settings: MakeSettings, tmp_path: Path) -> None:
    undisturbed = play(make_settings(run={"uri": str(tmp_path / "whole")}, spin={"max_epochs": 2}))
    settings = make_settings(spin={"max_epochs": 2})
    reference = begin(settings)
    scores = play_scores(settings, 0, reference)
    run = LocalRun(Path(settings.run.uri))
    attempt = run.read_json(layout.ATTEMPT)
    run.write_json(layout.ATTEMPT, {**attempt, "deadline": time.time() - 1})
    assert play_iteration(settings, 0, reference) == ""
    assert not run.exists(layout.checkpoint(0))
    assert train(settings.run.uri, 0, 0, reference, scores, hardware(settings)) == ""
    resumed = play(settings)  # a new attempt has a new deadline
    assert losses(resumed) == losses(undisturbed)


def test_time_running_out_inside_an_epoch_saves_first(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"micro_batch_size": 1, "global_batch_size": 1}
    undisturbed = play(make_settings(run={"uri": str(tmp_path / "whole")}, training=training))
    settings = make_settings(training=training)
    reference = begin(settings)
    scores = play_scores(settings, 0, reference)
    run = LocalRun(Path(settings.run.uri))
    asked = itertools.count(1)  # checked before the epoch and before every step: each attempt ends at the fourth check
    monkeypatch.setattr(Step, "out_of_time", lambda step: next(asked) % 6 == 0)
    stops = 0
    while not train(settings.run.uri, 0, 0, reference, scores, hardware(settings)):
        stops += 1
        assert run.read_json(layout.partial(0, 0))["facts"]["done"] == 4 * stops
    assert stops > 2
    assert losses(run) == losses(undisturbed)


def test_a_signal_inside_an_epoch_saves_first(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = play(make_settings(run={"uri": str(tmp_path / "whole")}))
    settings = make_settings()
    reference = begin(settings)
    scores = play_scores(settings, 0, reference)
    run = LocalRun(Path(settings.run.uri))
    after_step = EpochLoop._after_step

    def terminate(loop: EpochLoop, done: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        after_step(loop, done)

    with monkeypatch.context() as context, pytest.raises(Interrupted, match="SIGTERM"):
        context.setattr(EpochLoop, "_after_step", terminate)
        _train(settings, reference, scores)
    assert run.read_json(layout.partial(0, 0))["facts"]["done"] == 1
    assert not list(run.root.rglob("*.part"))
    _train(settings, reference, scores)
    assert losses(run) == losses(undisturbed)
