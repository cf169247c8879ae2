"""A run that is renamed, copied to a bucket, or seen through a mount can be read, resumed, exported, reproduced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spin_components.errors import InputsChangedError, IntegrityError, ModelError
from spin_components.model.lora.files import BASE, CONFIG, Base
from spin_components.model.stored import adapter_chain, model_files
from spin_components.prepare.input_checks import check_inputs
from spin_components.prepare.moved_inputs import record_addresses
from spin_components.record.history import read_history
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.digests import digest_json, digest_tree
from spin_components.store.local import LocalRun
from spin_components.store.manifests import Manifest
from spin_components.store.moving import each_address, relative
from spin_components.store.open import open_run
from spin_pipeline.cli import main
from spin_pipeline.config import check_settings
from spin_pipeline.runs.export import export_model
from spin_pipeline.runs.published import find_published, forked_values
from spin_pipeline.runs.reproduction.plan import plan
from spin_pipeline.runs.status import read_status
from support.playing import begin
from support.s3_server import BUCKET, S3Server

MakeSettings = Callable[..., Settings]


def texts(run: LocalRun) -> str:
    """Everything that a run's JSON files say, but the settings and inputs, which stay as they were given."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: without(item) for name, item in value.items() if name not in ("settings", "inputs")}
        return [without(item) for item in value] if isinstance(value, list) else value

    return "\n".join(
        json.dumps(without(json.loads(path.read_bytes())))
        for path in run.root.rglob("*.json")
        if "events" not in path.parts and path.name != CONFIG
    )


def as_written_before(run: LocalRun, root: str) -> None:
    """Rewrite a run's JSON files with whole addresses below `root`, as earlier versions wrote them."""
    for path in run.root.rglob("*.json"):
        value = json.loads(path.read_bytes())
        if isinstance(value, dict) and value.pop("checksum", None):
            whole = each_address(value, lambda uri: uri if not uri or "/" in (uri[0], uri[3:5]) else f"{root}/{uri}")
            if value.get("settings"):
                whole["settings"]["run"]["uri"] = root
            path.write_text(json.dumps({**whole, "checksum": digest_json(whole)}))


def assert_reads(run: RunStore, uri: str, into: Path) -> None:
    """Check that a run is read at its address, and that everything it names within itself is there."""
    status = read_status(uri)
    assert (status.state, status.run_uri) == ("done", uri)
    assert status.best is not None
    assert [each.checkpoint_uri for each in status.iterations] == [
        f"{uri}/{layout.epoch(t, 0)}/policy" for t in range(len(status.iterations))
    ]
    published = find_published(run, "1")
    assert published.uri == f"{uri}/{layout.epoch(1, 0)}/policy"
    assert published.facts["reference_uri"] == f"{uri}/{layout.epoch(0, 0)}/policy"
    assert main(["report", uri, "--output", str(into / "report.html")]) == 0
    exported, _ = export_model(uri, "1", str(into / "exported"))
    weights = model_files(run, published.uri)["model.safetensors"]
    assert digest_tree(into / "exported")["model.safetensors"] == weights
    assert exported.sha256 == published.sha256
    settings = plan(run, read_history(run), str(into / "again"), None).settings
    assert settings.model.base == run.read_json(layout.RUN)["base_model"]["uri"]
    forked = check_settings(forked_values(run, "1"), [], str(into / "forked"), source="the test")
    assert forked.model.base == published.uri
    assert main(["gc", uri, "--dry-run"]) == 0


def test_a_runs_files_name_nothing_by_the_runs_own_address(finished: LocalRun) -> None:
    assert finished.uri not in texts(finished)
    assert json.loads(finished.path(layout.LATEST).read_bytes())["uri"] == f"{layout.epoch(1, 0)}/policy"
    assert finished.read_json(layout.LATEST)["uri"] == f"{finished.uri}/{layout.epoch(1, 0)}/policy"


@pytest.mark.parametrize("is_old", [False, True])
def test_a_renamed_run_is_read_where_it_is(finished: LocalRun, tmp_path: Path, is_old: bool) -> None:
    shutil.copytree(finished.root, tmp_path / "renamed")
    run = LocalRun(tmp_path / "renamed")
    if is_old:
        as_written_before(run, "/no/longer/there")
        assert "/no/longer/there" in texts(run)
    assert_reads(run, str(tmp_path / "renamed"), tmp_path)
    (tmp_path / "mount").symlink_to(tmp_path / "renamed")
    shutil.rmtree(tmp_path / "exported")
    assert_reads(LocalRun(tmp_path / "mount"), str(tmp_path / "mount"), tmp_path)


@pytest.mark.parametrize("is_old", [False, True])
def test_a_run_copied_to_a_bucket_is_read_there(finished: LocalRun, s3: S3Server, tmp_path: Path, is_old: bool) -> None:
    shutil.copytree(finished.root, tmp_path / "copied")
    if is_old:
        as_written_before(LocalRun(tmp_path / "copied"), "s3://another-bucket/of/before")
    name = f"moved-{is_old}"
    for path in (tmp_path / "copied").rglob("*"):
        if path.is_file() and path.name != ".lock":
            target = s3.path(f"{name}/{path.relative_to(tmp_path / 'copied').as_posix()}")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    with open_run(f"s3://{BUCKET}/{name}") as run:
        assert_reads(run, f"s3://{BUCKET}/{name}", tmp_path)


@pytest.mark.parametrize("is_old", [False, True])
def test_adapters_find_the_policies_below_them_after_a_move(tmp_path: Path, is_old: bool) -> None:
    """Each policy is an adapter on the one before, and the first on a base model that lies in the run."""
    run = LocalRun(tmp_path / "run")
    began = "/where/it/began" if is_old else run.uri
    run.write_json(layout.RUN, {"settings": {"run": {"uri": began}}, "base_model": {"uri": layout.BUILTIN_MODEL}})
    below = layout.BUILTIN_MODEL
    for t in range(2):
        policy = f"{layout.epoch(t, 0)}/policy"
        uri = f"{began}/{below}" if is_old else relative(run.uri_of(below), run.uri)
        with run.staged(policy) as staged:
            staged.path.mkdir()
            (staged.path / CONFIG).write_text("{}")
            (staged.path / BASE).write_text(Base(uri=uri, sha256="0" * 64).model_dump_json())
        manifest = Manifest(step="train-epoch", inputs={}, outputs=staged.outputs)
        run.write_json(layout.epoch_manifest(t, 0), manifest.model_dump(mode="json"))
        below = policy
    moved = LocalRun(run.root.rename(tmp_path / "moved"))
    for address in (moved.uri_of(below), f"{began}/{below}", below):
        chain = adapter_chain(moved, moved.resolve(address))
        assert chain == [moved.path(f"{layout.epoch(t, 0)}/policy") for t in range(2)]


@given(key=st.text("ab./-", min_size=1, max_size=12), root=st.sampled_from(["/r", "s3://b", "s3://b/p", "/r/run"]))
def test_an_address_is_the_same_after_it_was_stored(key: str, root: str) -> None:
    run = LocalRun(Path("/r/run"))
    run.uri = root
    uri = f"{root}/{key}"
    stored = relative(uri, root)
    try:
        resolved = run.resolve(stored)
    except IntegrityError:
        assert stored == key
        return
    assert resolved == uri


@pytest.fixture
def fork(finished: LocalRun, make_settings: MakeSettings, tmp_path: Path) -> tuple[Settings, LocalRun]:
    """A run that was begun from another's policy, and that other run."""
    shutil.copytree(finished.root, tmp_path / "parent")
    parent = LocalRun(tmp_path / "parent")
    settings = make_settings(
        run={"uri": str(tmp_path / "fork")},
        model={"base": find_published(parent, "1").uri, "forked_from": f"{parent.uri}, iteration 1"},
        data={"max_train_records": 8, "validation_size": 4},
    )
    begin(settings)
    return settings, parent


def with_base(settings: Settings, uri: str, **others: str) -> Settings:
    return settings.model_copy(update={"model": settings.model.model_copy(update={"base": uri, **others})})


def test_a_fork_whose_parent_is_gone_says_what_is_possible(fork: tuple[Settings, LocalRun]) -> None:
    settings, parent = fork
    shutil.rmtree(parent.root)
    for start in (check_inputs, begin):
        with pytest.raises(ModelError, match=r"is not there any more; expected the policy of .*parent, iteration 1"):
            start(settings)
    assert read_status(settings.run.uri).run_uri == settings.run.uri


def test_a_fork_whose_parent_was_moved_is_resumed_with_its_new_address(fork: tuple[Settings, LocalRun]) -> None:
    settings, parent = fork
    moved = parent.root.rename(parent.root.with_name("moved"))
    uri = find_published(LocalRun(moved), "1").uri
    run = LocalRun(Path(settings.run.uri))
    prepared = run.read_json(layout.DATA_MANIFEST)
    again = with_base(settings, uri, forked_from=f"{moved}, iteration 1")
    begin(again)
    assert run.read_json(layout.DATA_MANIFEST) == prepared, "nothing was done again"
    record = run.read_json(layout.RUN)["base_model"]
    assert (record["uri"], record["former_uris"]) == (uri, [settings.model.base])
    assert LocalRun(run.root).resolve(settings.model.base) == uri, "earlier manifests name it by its earlier address"


def test_another_model_at_a_new_address_is_another_input(
    fork: tuple[Settings, LocalRun], tiny_llama: Path, tmp_path: Path
) -> None:
    settings, _ = fork
    shutil.copytree(tiny_llama, tmp_path / "other")
    with pytest.raises(InputsChangedError, match=r"model\.base"):
        begin(with_base(settings, str(tmp_path / "other")))


def test_addresses_that_did_not_change_are_not_written_again(finished: LocalRun, tmp_path: Path) -> None:
    shutil.copytree(finished.root, tmp_path / "run")
    run = LocalRun(tmp_path / "run")
    before = run.path(layout.RUN).stat().st_mtime_ns
    record = run.read_json(layout.RUN)
    record_addresses(run, record["base_model"]["uri"], {name: each["uri"] for name, each in record["data"].items()})
    assert run.path(layout.RUN).stat().st_mtime_ns == before
