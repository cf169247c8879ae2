"""Keys of manifests, listings, records and pointers never name a file outside the folder that they belong to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spin_components.errors import ConfigError, DataError, IntegrityError, ModelError, SpinError
from spin_components.model.stored import base_files, model_files, validated_epoch
from spin_components.store import layout
from spin_components.store.addresses import parse_hub
from spin_components.store.bucket import Bucket, ObjectInfo
from spin_components.store.cache import FileCache
from spin_components.store.digests import FileDigest, digest_file
from spin_components.store.keys import check_key, flaw_of, place
from spin_components.store.local import LocalRun
from spin_components.store.manifests import Manifest, read_manifest
from spin_components.store.model_files import INDEX, weight_files
from spin_components.store.open import open_run
from spin_components.store.sources import Sources
from spin_pipeline.runs.published import find_published
from support.s3_server import BUCKET, S3Server

LEAVING = [
    *("/etc/passwd", "//abs", "../x", "a/../../x", "a/..", "..", ".", "a/./b", "a//b", "a/", "", "a\0b", "C:/x", "C:"),
    *("c:\\x", "\\\\host\\share", "a/" + "n" * 256, "a/\ud800"),
]
PARTS = st.sampled_from(["a", "policy", "..", ".", "", "\0", "C:", "~", "a b", "é", "x" * 300, "\ud800", "-", "\\"])
KEYS = st.one_of(st.lists(PARTS, max_size=5).map("/".join), st.text(max_size=20))


@pytest.mark.parametrize("key", LEAVING)
def test_a_key_that_leaves_its_folder_is_refused_with_where_and_what(key: str, tmp_path: Path) -> None:
    with pytest.raises(
        IntegrityError, match=r"of the test names the file .*, which .*; expected a path inside the folder"
    ):
        check_key(key, where="the listing of the test")
    with pytest.raises(IntegrityError):
        place(tmp_path, key)


@pytest.mark.parametrize("key", ["a", "a/b.json", ".hidden", "a b/c", "é", "~", "$HOME", "a..b", "...", "a:b", "-rf"])
def test_a_proper_key_is_a_path_in_the_folder(key: str, tmp_path: Path) -> None:
    assert place(tmp_path, key) == tmp_path / key


@given(key=KEYS)
def test_what_is_placed_is_inside(key: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "folder"
    if flaw_of(key):
        with pytest.raises(IntegrityError):
            place(folder, key)
        return
    path = place(folder, key)
    assert path.is_relative_to(folder)
    assert ".." not in PurePosixPath(path).parts
    assert path != folder


@given(key=KEYS, sha256=st.one_of(st.just("0" * 64), st.text(max_size=70)), num_bytes=st.integers())
def test_a_manifest_has_proper_keys_and_digests_or_is_refused(
    key: str, sha256: str, num_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = LocalRun(tmp_path_factory.getbasetemp() / "manifests")
    outputs = {key: {"num_bytes": num_bytes, "sha256": sha256}}
    try:
        run.write_json("a/manifest.json", {"step": "x", "inputs": {}, "outputs": outputs})
    except UnicodeEncodeError:
        return
    try:
        manifest = read_manifest(run, "a/manifest.json")
    except IntegrityError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
        return
    assert not flaw_of(key)
    assert num_bytes >= 0
    assert set(sha256) <= set("0123456789abcdef")
    with pytest.raises(IntegrityError, match="is missing"):
        run.fetch(manifest.outputs, what="it")


POINTERS = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=12), KEYS),
    lambda values: st.one_of(st.lists(values, max_size=2), st.dictionaries(st.text(max_size=4), values, max_size=2)),
    max_leaves=4,
)


@given(uri=st.one_of(KEYS, KEYS.map("/elsewhere/".__add__), KEYS.map("s3://bucket/".__add__)))
def test_an_address_of_a_pointer_is_a_policy_of_the_run_or_refused(
    uri: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = LocalRun(tmp_path_factory.getbasetemp() / "pointers")
    run.write_json(layout.RUN, {"base_model": {"uri": "/models/base", "files": {}}})
    for look_up in (model_files, validated_epoch):
        with pytest.raises((IntegrityError, ConfigError)):
            look_up(run, uri)


@given(iteration=POINTERS, facts=st.dictionaries(st.sampled_from(["checkpoint_uri", "uri"]), POINTERS))
def test_odd_pointers_and_checkpoints_are_refused(
    iteration: Any, facts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = LocalRun(tmp_path_factory.getbasetemp() / "best")
    run.write_json(layout.RUN, {"base_model": {"uri": "/models/base", "files": []}, "settings": {}})
    try:
        run.write_json(layout.BEST, {"iteration": iteration})
        manifest = Manifest(step="checkpoint", inputs={}, facts=facts)
        run.write_json(layout.checkpoint(0), manifest.model_dump(mode="json"))
    except UnicodeEncodeError:
        return
    run.write("iterations/x/checkpoint.json", b"{}")
    for which in ("best", "0", "²", "9" * 5000):
        with pytest.raises(SpinError):
            find_published(run, which)


@pytest.mark.parametrize("sha256", ["/etc/passwd", "../../x", "A" * 64, "0" * 63, "0" * 64 + "\n", ""])
def test_a_digest_cannot_be_a_path(sha256: str) -> None:
    with pytest.raises(ValueError, match="sha256"):
        FileDigest(num_bytes=1, sha256=sha256)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with a secret, beside the run."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("secret")
    return tmp_path / "outside"


def test_a_link_out_of_a_run_is_neither_read_nor_written_nor_deleted_through(tmp_path: Path, outside: Path) -> None:
    run = LocalRun(tmp_path / "run")
    run.write("iterations/0/checkpoint.json", b"{}")
    run.path("iterations/1").symlink_to(outside)
    run.path("iterations/0/evaluation.json").symlink_to(outside / "secret.txt")
    digest = digest_file(outside / "secret.txt")
    assert list(run.sizes("")) == ["iterations/0/checkpoint.json"]
    for key in ("iterations/1/secret.txt", "iterations/0/evaluation.json", "iterations/1"):
        for use in (run.exists, run.read, run.delete, lambda key: run.write(key, b"x"), run.appender):
            with pytest.raises(IntegrityError, match="symbolic link that leads out of the folder"):
                use(key)
        with pytest.raises(IntegrityError, match="symbolic link"), run.staged(key) as staged:
            staged.path.write_text("x")
        with pytest.raises(IntegrityError, match="symbolic link"):
            run.fetch({key: digest}, what="it")
    assert [path.name for path in outside.iterdir()] == ["secret.txt"]
    assert (outside / "secret.txt").read_text() == "secret"


def test_links_inside_a_run_and_to_a_run_are_followed(tmp_path: Path) -> None:
    run = LocalRun(tmp_path / "run")
    run.write("iterations/0/a.json", b"{}")
    run.path("iterations/1").symlink_to("0")
    assert run.read("iterations/1/a.json") == b"{}"
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert LocalRun(tmp_path / "link").read("iterations/0/a.json") == b"{}"


def test_a_view_of_the_cache_takes_only_keys_below_it(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", 1 << 20)
    path = cache.free_path()
    path.write_bytes(b"x")
    digest = digest_file(path)
    cache.add(path, digest)
    view = cache.view()
    for key in ("/abs", "../x", "a//b"):
        with pytest.raises(IntegrityError, match="which"):
            view.link_path(key, digest)
    assert cache.link(digest, view.link_path("a", digest))
    assert cache.link(digest, view.folder / "a"), "the same content under the same name"
    with pytest.raises(IntegrityError, match="has the name of another file or folder"):
        cache.link(digest, view.link_path("a/b", digest))
    (view.folder / "other").write_bytes(b"y")
    with pytest.raises(IntegrityError, match="has the name of another file"):
        cache.link(digest, view.folder / "other")
    view.close()


@pytest.mark.parametrize("name", ["/aim.jsonl", "a//aim.jsonl", "n" * 300 + ".jsonl"])
def test_an_object_whose_name_leaves_the_prefix_is_refused(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The listing is another server's: this one keeps objects as files, and takes no such name."""
    Bucket(BUCKET).put("listed/good.jsonl", b"{}\n")
    good = Bucket(BUCKET).stat("listed/good.jsonl")
    assert good
    listed = [good, ObjectInfo(f"listed/{name}", 3, "2")]
    monkeypatch.setattr(Bucket, "objects", lambda self, prefix: iter(listed))
    with Sources() as sources, pytest.raises(DataError, match="has an object whose name"):
        sources.open_data(f"s3://{BUCKET}/listed", what="data.train")
    listed[1] = ObjectInfo(f"listed/{name}.txt", 3, "2")
    with Sources() as sources:
        opened = sources.open_data(f"s3://{BUCKET}/listed", what="data.train")
        assert opened.names == ("good.jsonl",), "a name that is not wanted is no matter"


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a//b"])
def test_a_run_in_a_bucket_takes_no_such_key(s3: S3Server, key: str) -> None:
    run = open_run(f"s3://{BUCKET}/keys")
    for use in (run.exists, run.read, run.delete, lambda key: run.write(key, b"x"), run.sizes):
        with pytest.raises(IntegrityError, match="which"):
            use(key)
    with pytest.raises(IntegrityError, match="which"):
        run.fetch({key: FileDigest(num_bytes=1, sha256="0" * 64)}, what="it")


@pytest.mark.parametrize("name", ["/etc/passwd", "../model.safetensors", "a//b"])
def test_an_index_of_weights_names_only_files_of_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ModelError, match="not in the folder"):
        weight_files(folder, {})
    with pytest.raises(ModelError, match="transformers_weights names the file"):
        weight_files(folder, {"transformers_weights": name})


def test_a_record_of_files_elsewhere_is_refused(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    odd: list[Any] = [{"/etc/passwd": {"num_bytes": 1, "sha256": "0" * 64}}, {"a": {}}, {"a": None}, [], None]
    for files in odd:
        run.write_json(layout.RUN, {"base_model": {"uri": "/models/base", "files": files}})
        with pytest.raises(IntegrityError, match=r"run\.json"):
            base_files(run)


def test_a_hub_address_stays_in_its_repository() -> None:
    for uri in ("hf://org/name/../../x", "hf://org/../name", "hf://datasets/org/name/./x"):
        with pytest.raises(ConfigError, match=r"has no '\.' and '\.\.'"):
            parse_hub(uri, what="model.base")


def test_an_export_of_a_policy_with_a_foreign_file_is_refused(
    finished: LocalRun, tmp_path: Path, outside: Path
) -> None:
    from spin_pipeline.runs.export import export_model

    shutil.copytree(finished.root, tmp_path / "run")
    run = LocalRun(tmp_path / "run")
    manifest = run.read_json(layout.epoch_manifest(1, 0))
    digest = digest_file(outside / "secret.txt").model_dump()
    for name in (str(outside / "secret.txt"), "../../../../../../outside/secret.txt"):
        outputs = {**manifest["outputs"], f"{layout.epoch(1, 0)}/policy/{name}": digest}
        run.write_json(layout.epoch_manifest(1, 0), {**manifest, "outputs": outputs})
        with pytest.raises(IntegrityError, match="is not a manifest"):
            export_model(run.uri, "1", str(tmp_path / "exported"))
    link = f"{layout.epoch(1, 0)}/policy/notes.txt"
    run.path(link).symlink_to(outside / "secret.txt")
    run.write_json(layout.epoch_manifest(1, 0), {**manifest, "outputs": {**manifest["outputs"], link: digest}})
    with pytest.raises(IntegrityError, match="symbolic link"):
        export_model(run.uri, "1", str(tmp_path / "exported"))
    assert not (tmp_path / "exported").exists()
