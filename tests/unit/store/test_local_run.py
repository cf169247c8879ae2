from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from spin_components.errors import ConfigError, IntegrityError
from spin_components.store.run import RunStore, local_path


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file with its content, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.mark.parametrize("form", ["{path}", "file://{path}"])
def test_a_path_and_a_file_uri_name_the_same_run(tmp_path: Path, form: str) -> None:
    run = RunStore(form.format(path=tmp_path / "run"))
    assert (run.root, run.uri) == (tmp_path / "run", str(tmp_path / "run"))


def test_a_file_uri_is_unquoted(tmp_path: Path) -> None:
    assert local_path((tmp_path / "a b#%").as_uri(), what="run.uri") == tmp_path / "a b#%"


def test_a_relative_path_becomes_absolute() -> None:
    assert local_path("runs/demo", what="run.uri") == Path.cwd() / "runs" / "demo"


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("s3://bucket/prefix", "run.uri = 's3://bucket/prefix': scheme 's3' is not supported"),
        ("gs://bucket", "scheme 'gs'"),
        ("", "run.uri is empty"),
    ],
)
def test_other_addresses_are_refused(uri: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RunStore(uri)


def test_a_file_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(ConfigError, match="is a file; expected a folder"):
        RunStore(str(tmp_path / "run"))


def test_looking_at_a_run_does_not_create_it(tmp_path: Path) -> None:
    run = RunStore(str(tmp_path / "run"))
    assert not run.exists("run.json")
    assert run.list("iterations", "*/checkpoint.json") == []
    run.sweep("iterations")
    assert not run.root.exists()


def test_keys_and_addresses_are_each_others_inverse(tmp_path: Path) -> None:
    run = RunStore(str(tmp_path / "run"))
    for key in ("run.json", "iterations/0/epochs/1/policy"):
        assert run.key_of(run.uri_of(key)) == key
        assert run.path(key) == tmp_path / "run" / key
    assert run.key_of((tmp_path / "run" / "a b").as_uri()) == "a b"


@pytest.mark.parametrize("elsewhere", ["other/run.json", "run2/run.json", "run/../other/run.json"])
def test_an_address_elsewhere_has_no_key(tmp_path: Path, elsewhere: str) -> None:
    assert RunStore(str(tmp_path / "run")).key_of(f"{tmp_path}/{elsewhere}") is None


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    run = RunStore(str(tmp_path))
    run.write_json("a/b.json", {"ü": [1, 1.5, None, True, "\u2028"]})
    assert run.read_json("a/b.json") == {"ü": [1, 1.5, None, True, "\u2028"]}
    run.write_json("a/b.json", "again")
    assert (run.read_json("a/b.json"), list(files_below(tmp_path))) == ("again", ["a/b.json"])


def test_json_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    run = RunStore(str(tmp_path))
    with pytest.raises(IntegrityError, match=r"a\.json is missing; the step that writes it has not finished"):
        run.read_json("a.json")
    run.path("a.json").write_bytes(b'{"cut": ')
    with pytest.raises(IntegrityError, match=r"a\.json is not JSON"):
        run.read_json("a.json")


def test_json_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    run = RunStore(str(tmp_path))
    run.write_json("a.json", 1)
    with pytest.raises(ValueError, match="JSON"):
        run.write_json("a.json", math.nan)
    assert {name: json.loads(content) for name, content in files_below(tmp_path).items()} == {"a.json": 1}


def test_nothing_is_there_until_a_write_ends(tmp_path: Path) -> None:
    run = RunStore(str(tmp_path))
    with run.staged("a/b") as path:
        path.write_bytes(b"half")
        assert not run.exists("a/b")
        assert run.list("a", "*.json") == []
        path.write_bytes(b"whole")
    assert files_below(tmp_path) == {"a/b": b"whole"}


def test_a_file_that_fails_to_be_written_leaves_the_old_one_and_no_more(tmp_path: Path) -> None:
    run = RunStore(str(tmp_path))
    with run.staged("a/b") as path:
        path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="on the way"), run.staged("a/b") as path:
        path.write_bytes(b"new, ha")
        raise RuntimeError("on the way")
    assert files_below(tmp_path) == {"a/b": b"old"}


def test_a_folder_that_fails_to_be_written_leaves_the_old_one_and_no_more(tmp_path: Path) -> None:
    run = RunStore(str(tmp_path))
    with run.staged("policy") as path:
        path.mkdir()
        (path / "weights").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="on the way"), run.staged("policy") as path:
        path.mkdir()
        (path / "weights").write_bytes(b"new, ha")
        raise RuntimeError("on the way")
    assert files_below(tmp_path) == {"policy/weights": b"old"}


def test_a_folder_replaces_the_one_before_whole(tmp_path: Path) -> None:
    run = RunStore(str(tmp_path))
    for name in ("first", "second"):
        with run.staged("policy") as path:
            path.mkdir()
            (path / name).write_bytes(b"x")
    assert files_below(tmp_path) == {"policy/second": b"x"}


def test_a_block_that_writes_nothing_leaves_what_was_there(tmp_path: Path) -> None:
    run = RunStore(str(tmp_path))
    with run.staged("policy") as path:
        path.mkdir()
        (path / "weights").write_bytes(b"old")
    with pytest.raises(IntegrityError), run.staged("policy"):
        pass
    assert files_below(tmp_path) == {"policy/weights": b"old"}


def test_sweeping_removes_what_dead_writers_left_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a/b.json", "a/.c.json.12345678.part", "a/.policy.12345678.part/x/.y.12345678.part", "a/x.part"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / ".z.12345678.part").write_bytes(b"of another prefix")
    run = RunStore(str(tmp_path))
    run.sweep("a")
    assert list(files_below(tmp_path)) == [".z.12345678.part", "a/b.json", "a/x.part"]
    run.sweep("")
    assert list(files_below(tmp_path)) == ["a/b.json", "a/x.part"]


def test_deleting_counts_bytes(tmp_path: Path) -> None:
    run = RunStore(str(tmp_path))
    with run.staged("policy") as path:
        (path / "deep").mkdir(parents=True)
        (path / "a").write_bytes(b"12345")
        (path / "deep" / "b").write_bytes(b"678")
    with run.staged("one") as path:
        path.write_bytes(b"12")
    assert [run.delete(key) for key in ("policy", "one", "one", "nothing/here")] == [8, 2, 0, 0]
    assert files_below(tmp_path) == {}


def test_listing_gives_keys_in_order(tmp_path: Path) -> None:
    run = RunStore(str(tmp_path))
    for key in ("iterations/1/checkpoint.json", "iterations/0/checkpoint.json", "iterations/0/other.json"):
        run.write_json(key, {})
    assert run.list("iterations", "*/checkpoint.json") == [
        "iterations/0/checkpoint.json",
        "iterations/1/checkpoint.json",
    ]
