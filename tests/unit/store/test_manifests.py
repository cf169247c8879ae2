from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spin_components.errors import InputsChangedError, IntegrityError
from spin_components.store.digests import FileDigest
from spin_components.store.local import LocalRun
from spin_components.store.manifests import Manifest, differing, finished, read_manifest

KEY = "iterations/0/epochs/0/manifest.json"
INPUTS: dict[str, Any] = {"training.lr": 5e-7, "seed": 0, "shards": [1, 2], "warmup": "1", "none": None}


def written(run: LocalRun, inputs: dict[str, Any]) -> Manifest:
    manifest = Manifest(
        step="train-epoch", inputs=inputs, outputs={"a/b": FileDigest(num_bytes=1, sha256="0" * 64)}, facts={"x": 1.5}
    )
    run.write_json(KEY, manifest.model_dump(mode="json"))
    return manifest


def test_a_step_without_manifest_has_not_finished(tmp_path: Path) -> None:
    assert finished(LocalRun(tmp_path), KEY, INPUTS) is None


def test_a_step_with_the_same_inputs_has_finished(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    manifest = written(run, INPUTS)
    assert finished(run, KEY, dict(reversed(INPUTS.items()))) == manifest
    assert read_manifest(run, KEY) == manifest


def test_every_difference_of_inputs_is_listed(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    written(run, INPUTS)
    now = {**INPUTS, "training.lr": 1e-7, "shards": [1], "new": "x"}
    with pytest.raises(InputsChangedError) as caught:
        finished(run, KEY, now)
    text = str(caught.value)
    assert run.uri_of(KEY) in text
    assert (
        "made from other inputs: new was None, now 'x'; shards was [1, 2], now [1]; training.lr was 5e-07, now 1e-07."
        in text
    )
    assert "seed" not in text
    assert finished(run, KEY, INPUTS) is not None  # neither reused nor overwritten


def test_a_count_differs_from_its_text() -> None:
    assert differing({"warmup": "1"}, {"warmup": 1}) == ["warmup was '1', now 1"]


def test_long_values_are_shortened_in_the_message() -> None:
    (line,) = differing({"a": "x" * 500}, {"a": "y"})
    assert len(line) < 120
    assert line.endswith("…, now 'y'")


def test_outputs_below_a_folder_have_relative_paths() -> None:
    names = ("epochs/0/policy/a", "epochs/0/policy/b/c", "epochs/0/policy2/a", "epochs/0/metrics.json")
    outputs = {name: FileDigest(num_bytes=1, sha256=f"{number:064x}") for number, name in enumerate(names)}
    manifest = Manifest(step="train-epoch", inputs={}, outputs=outputs)
    assert list(manifest.outputs_below("epochs/0/policy")) == ["a", "b/c"]
    assert list(manifest.outputs_below("epochs/0/policy/")) == ["a", "b/c"]


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"manifest\.json is missing"):
        read_manifest(LocalRun(tmp_path), KEY)


@pytest.mark.parametrize("content", [{}, {"step": "x", "inputs": {}, "surprise": 1}])
def test_json_that_is_not_a_manifest_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    run = LocalRun(tmp_path)
    run.write_json(KEY, content)
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        read_manifest(run, KEY)
