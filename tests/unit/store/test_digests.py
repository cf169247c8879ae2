from __future__ import annotations

import math
from pathlib import Path

import pytest

from spin_components.errors import IntegrityError
from spin_components.store.digests import (
    FileDigest,
    digest_file,
    digest_json,
    digest_of,
    digest_tree,
    verify_file,
    verify_tree,
)

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""SHA-256 of `abc`, from FIPS 180-2."""


def folder_of(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def test_a_digest_is_size_and_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert digest_file(tmp_path / "a") == FileDigest(num_bytes=3, sha256=ABC)


def test_a_tree_has_sorted_relative_paths(tmp_path: Path) -> None:
    folder_of(tmp_path, {"b/c/d": b"abc", "z": b"", "a": b"abc"})
    (tmp_path / "empty").mkdir()
    digests = digest_tree(tmp_path)
    assert list(digests) == ["a", "b/c/d", "z"]
    assert digests["b/c/d"].sha256 == ABC


def test_json_is_canonical() -> None:
    assert digest_json({"a": 1, "b": [2, 3]}) == digest_json({"b": [2, 3], "a": 1})
    assert digest_json({"a": 1, "b": [2, 3]}) != digest_json({"a": 1, "b": [3, 2]})
    assert digest_json(1) != digest_json(1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [-math.inf]}])
def test_json_with_nan_or_infinity_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest_json(value)


def test_the_digest_of_files_covers_names_and_contents(tmp_path: Path) -> None:
    first = digest_tree(folder_of(tmp_path / "1", {"a": b"abc", "b": b"x"}))
    again = digest_tree(folder_of(tmp_path / "2", {"b": b"x", "a": b"abc"}))
    renamed = digest_tree(folder_of(tmp_path / "3", {"a": b"abc", "c": b"x"}))
    altered = digest_tree(folder_of(tmp_path / "4", {"a": b"abc", "b": b"y"}))
    assert digest_of(first) == digest_of(again)
    assert len({digest_of(files) for files in (first, renamed, altered, {})}) == 4


def test_unchanged_files_pass(tmp_path: Path) -> None:
    expected = digest_tree(folder_of(tmp_path, {"a": b"abc", "b/c": b"x"}))
    (tmp_path / "more").write_bytes(b"files beside them are of no concern")
    verify_tree(tmp_path, expected, what="the reference policy")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (None, "a is missing, expected 3 bytes. the reference policy cannot be used"),
        (b"ab", "a has 2 bytes, expected 3"),
        (b"abd", f"a has SHA-256 .*, expected {ABC[:12]}"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: bytes | None, says: str) -> None:
    expected = digest_tree(folder_of(tmp_path, {"a": b"abc", "b": b"x"}))
    (tmp_path / "a").unlink()
    if damage is not None:
        (tmp_path / "a").write_bytes(damage)
    with pytest.raises(IntegrityError, match=says):
        verify_tree(tmp_path, expected, what="the reference policy")
    verify_tree(tmp_path, {"b": expected["b"]}, what="the reference policy")


def test_an_error_ends_with_what_to_do(tmp_path: Path) -> None:
    expected = {"a": FileDigest(num_bytes=3, sha256=ABC)}
    with pytest.raises(IntegrityError, match=r"x cannot be used; restore the original file$"):
        verify_tree(tmp_path, expected, what="x")
    with pytest.raises(IntegrityError, match=r"x cannot be used; delete y$"):
        verify_tree(tmp_path, expected, what="x", remedy="delete y")


def test_a_folder_in_place_of_a_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IntegrityError, match="is missing"):
        verify_file(tmp_path / "a", FileDigest(num_bytes=3, sha256=ABC), what="x")
