"""`prepare` estimates the memory of all steps, records it, and refuses settings that cannot fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from spin_components.data.shards import Prompt, read_rows
from spin_components.errors import ConfigError
from spin_components.prepare.step import prepare
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import read_manifest

MakeSettings = Callable[..., Settings]
COMPILED = {"max_iterations": 1, "max_epochs": [1], "shards": 1, "nodes": 1}


def prepared(settings: Settings) -> LocalRun:
    prepare(settings.run.uri, settings.model_dump(mode="json", include=set(Settings.model_fields)), COMPILED)
    return LocalRun(Path(settings.run.uri))


def test_the_longest_pair_of_the_data_and_every_steps_peak_are_recorded(make_settings: MakeSettings) -> None:
    run = prepared(make_settings())
    facts = read_manifest(run, layout.DATA_MANIFEST).facts
    rows = [row for key in (layout.train_shard(0), layout.VALIDATION) for row in read_rows(run.path(key), Prompt)]
    longest = max(len(row.prompt_ids) + len(row.actual_ids) for row in rows)
    assert facts["longest_pair"]["prompt"] + facts["longest_pair"]["actual"] == longest
    assert facts["longest_pair"]["generated"] <= 16
    assert set(facts["memory_estimate"]) == {"generate", "ref-logprob", "train-epoch", "validate"}
    assert all(2**29 < each["memory_bytes"] < 2**30 for each in facts["memory_estimate"].values())


def test_pods_that_are_too_small_are_refused_before_the_data_is_read(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_POD_NAME", "a-pod")
    small = {"placement": {"train": {"memory": "300Mi"}}}
    missing = make_settings(**small, data={"train": "/absent"})
    with pytest.raises(ConfigError, match=r"^train-epoch needs about .* of memory, there are 0.3 GiB \(libraries"):
        prepared(missing)
    run = prepared(make_settings(**small, hardware={"memory_check": "off"}))
    assert run.exists(layout.DATA_MANIFEST)
    with pytest.raises(ConfigError, match=r"hardware\.memory_check = 'warn'"):
        prepared(make_settings(**small))  # also if prepare is finished: later steps would fail
