from __future__ import annotations

import math
from pathlib import Path

import pytest

from spin_components.errors import ConfigError, IntegrityError, StorageAccessError
from spin_components.store.digests import FileDigest, digest_file
from spin_components.store.local import LocalRun
from spin_components.store.open import open_run


def files_below(folder: Path) -> dict[str, bytes]:
    """Contents of all files below a folder by relative path, hidden ones included."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.mark.parametrize("form", ["{path}", "file://{path}", "{path}/", "{path}/../run"])
def test_a_path_and_a_file_uri_name_the_same_run(tmp_path: Path, form: str) -> None:
    run = open_run(form.format(path=tmp_path / "run"))
    assert isinstance(run, LocalRun)
    assert (run.root, run.uri) == (tmp_path / "run", str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("gs://bucket", "run.uri = 'gs://bucket': scheme 'gs' is not supported"),
        ("hf://org/name", "scheme 'hf' is not supported"),
        ("", "run.uri is empty"),
    ],
)
def test_other_addresses_are_refused(uri: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        open_run(uri)


def test_a_file_as_run_uri_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(ConfigError, match="is a file; expected a folder"):
        LocalRun(tmp_path / "run")


def test_reading_a_run_does_not_create_it(tmp_path: Path) -> None:
    run = LocalRun(tmp_path / "run")
    assert not run.exists("run.json")
    assert run.list("iterations", "*/checkpoint.json") == []
    run.sweep()
    assert not run.root.exists()


def test_keys_and_addresses_are_inverse(tmp_path: Path) -> None:
    run = LocalRun(tmp_path / "run")
    for key in ("run.json", "iterations/0/epochs/1/policy"):
        assert run.key_of(run.uri_of(key)) == key
        assert run.path(key) == tmp_path / "run" / key
    assert run.key_of((tmp_path / "run" / "a b").as_uri()) == "a b"


@pytest.mark.parametrize("elsewhere", ["other/run.json", "run2/run.json", "run/../other/run.json"])
def test_an_address_outside_the_run_has_no_key(tmp_path: Path, elsewhere: str) -> None:
    assert LocalRun(tmp_path / "run").key_of(f"{tmp_path}/{elsewhere}") is None


def test_json_round_trips(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    run.write_json("a/b.json", {"ü": [1, 1.5, None, True, "\u2028"]})
    assert run.read_json("a/b.json") == {"ü": [1, 1.5, None, True, "\u2028"]}
    run.write_json("a/b.json", {"again": 1})
    assert (run.read_json("a/b.json"), list(files_below(tmp_path))) == ({"again": 1}, ["a/b.json"])


def test_json_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    with pytest.raises(IntegrityError, match=r"a\.json is missing; the step that writes it has not finished"):
        run.read_json("a.json")
    run.path("a.json").write_bytes(b'{"cut": ')
    with pytest.raises(IntegrityError, match=r"a\.json is not JSON"):
        run.read_json("a.json")


def test_a_failed_json_write_keeps_the_old_one(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    run.write_json("a.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        run.write_json("a.json", {"a": math.nan})
    assert (run.read_json("a.json"), list(files_below(tmp_path))) == ({"a": 1}, ["a.json"])


@pytest.mark.parametrize(
    ("before", "after"),
    [(b'"lr": 0.1', b'"lr": 0.3'), (b'"a"', b'"b"'), (b'"checksum"', b'"checksun"'), (b"1,", b"2,")],
)
def test_changed_json_is_refused(tmp_path: Path, before: bytes, after: bytes) -> None:
    run = LocalRun(tmp_path)
    run.write_json("a.json", {"lr": 0.1, "a": [1, 1]})
    path = run.path("a.json")
    content = path.read_bytes()
    assert before in content
    path.write_bytes(content.replace(before, after, 1))
    with pytest.raises(IntegrityError, match=r"a\.json was changed after it was written: its checksum is"):
        run.read_json("a.json")


def test_a_write_is_invisible_until_it_ends(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    with run.staged("a/b") as staged:
        staged.path.write_bytes(b"half")
        assert not run.exists("a/b")
        assert run.list("a", "*.json") == []
        staged.path.write_bytes(b"whole")
    assert files_below(tmp_path) == {"a/b": b"whole"}


def test_a_failed_file_write_keeps_only_the_old_file(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    with run.staged("a/b") as staged:
        staged.path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="on the way"), run.staged("a/b") as staged:
        staged.path.write_bytes(b"new, ha")
        raise RuntimeError("on the way")
    assert files_below(tmp_path) == {"a/b": b"old"}


def test_a_failed_folder_write_keeps_only_the_old_folder(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    with run.staged("policy") as staged:
        staged.path.mkdir()
        (staged.path / "weights").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="on the way"), run.staged("policy") as staged:
        staged.path.mkdir()
        (staged.path / "weights").write_bytes(b"new, ha")
        raise RuntimeError("on the way")
    assert files_below(tmp_path) == {"policy/weights": b"old"}


def test_a_folder_replaces_the_previous_one_completely(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    for name in ("first", "second"):
        with run.staged("policy") as staged:
            staged.path.mkdir()
            (staged.path / name).write_bytes(b"x")
    assert files_below(tmp_path) == {"policy/second": b"x"}


def test_a_block_that_writes_nothing_keeps_the_old_content(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    with run.staged("policy") as staged:
        staged.path.mkdir()
        (staged.path / "weights").write_bytes(b"old")
    with pytest.raises(IntegrityError), run.staged("policy"):
        pass
    assert files_below(tmp_path) == {"policy/weights": b"old"}


def test_sweeping_removes_only_the_runs_own_partial_writes(tmp_path: Path) -> None:
    epoch = "iterations/0/epochs/1"
    kept = [
        *("notes/.draft.part", "notes/.c.json.12345678.part", f"{epoch}/x.part", f"{epoch}/.policy.mine.part"),
        *("other/run.json", "other/.run.json.12345678.part", "begun/lease.json", "begun/data/.a.json.12345678.part"),
    ]
    swept = [
        *(f"{epoch}/.manifest.json.12345678.part", f"{epoch}/.policy.12345678.part/x/.y.12345678.part"),
        *(".run.json.12345678.part", ".made-12345678.part/x", ".epoch-0-1-12345678.part/trainer/x"),
    ]
    for name in (*kept, *swept):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert len(LocalRun(tmp_path).sweep(dry_run=True)) == len(swept)
    LocalRun(tmp_path).sweep()
    assert sorted(files_below(tmp_path)) == sorted(kept)


def test_deleting_returns_the_freed_bytes(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    with run.staged("policy") as staged:
        (staged.path / "deep").mkdir(parents=True)
        (staged.path / "a").write_bytes(b"12345")
        (staged.path / "deep" / "b").write_bytes(b"678")
    with run.staged("one") as staged:
        staged.path.write_bytes(b"12")
    assert [run.delete(key) for key in ("policy", "one", "one", "nothing/here")] == [8, 2, 0, 0]
    assert files_below(tmp_path) == {}


def test_listing_returns_sorted_keys(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    for key in ("iterations/1/checkpoint.json", "iterations/0/checkpoint.json", "iterations/0/other.json"):
        run.write_json(key, {})
    assert run.list("iterations", "*/checkpoint.json") == [
        "iterations/0/checkpoint.json",
        "iterations/1/checkpoint.json",
    ]


def test_listing_returns_files_at_the_depth_of_the_pattern(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    for key in ("a/x.json", "a/b/x.json", "a/b/c/x.json", "ab/x.json"):
        run.write_json(key, {})
    (tmp_path / "a" / "folder.json").mkdir()
    assert run.list("a", "*.json") == ["a/x.json"]
    assert run.list("a", "*/*") == ["a/b/x.json"]
    assert run.list("", "*/x.json") == ["a/x.json", "ab/x.json"]


def test_a_write_returns_digests(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    with run.staged("a/b") as file:
        file.path.write_bytes(b"abc")
        assert file.outputs == {}
    assert file.outputs == {"a/b": digest_file(tmp_path / "a" / "b")}
    with run.staged("policy") as folder:
        (folder.path / "deep").mkdir(parents=True)
        (folder.path / "deep" / "x").write_bytes(b"abc")
    assert folder.outputs == {"policy/deep/x": file.outputs["a/b"]}


def test_sizes_exclude_partial_writes(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    run.write("a/b", b"abc")
    run.write("a/.hidden", b"")
    with run.staged("a/c") as staged:
        staged.path.write_bytes(b"half")
        assert run.sizes("a") == run.sizes("") == {"a/b": 3, "a/.hidden": 0}
    assert run.sizes("absent") == {}


def test_content_is_read_from_an_offset(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    run.write("a", b"abcdef")
    assert [run.read("a"), run.read("a", 4), run.read("a", 6), run.read("b")] == [b"abcdef", b"ef", b"", None]


def test_fetching_verifies_files_and_says_what_to_delete(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    with run.staged("policy") as staged:
        staged.path.mkdir()
        (staged.path / "a").write_bytes(b"abc")
        (staged.path / "b").write_bytes(b"x")
    assert run.fetch(staged.outputs, what="the policy") == tmp_path
    (tmp_path / "policy" / "b").write_bytes(b"y")
    with pytest.raises(
        IntegrityError, match=r"policy/b has SHA-256 .* the policy cannot be used; delete .*/m\.json to"
    ):
        run.fetch(staged.outputs, what="the policy", made_by="m.json")
    absent = {"policy/c": FileDigest(num_bytes=7, sha256="0" * 64)}
    with pytest.raises(IntegrityError, match=r"policy/c is missing, expected 7 bytes"):
        run.fetch(absent, what="the policy")


def test_a_probe_creates_the_folder_and_leaves_no_file(tmp_path: Path) -> None:
    LocalRun(tmp_path / "runs" / "run").probe()
    assert (tmp_path / "runs" / "run").is_dir()
    assert files_below(tmp_path) == {}


def test_a_probe_of_an_unusable_path_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        StorageAccessError, match=r"run\.uri = '.*/file/run' cannot be written and read back: Not a dir"
    ):
        LocalRun(tmp_path / "file" / "run").probe()
