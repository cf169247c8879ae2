from __future__ import annotations

import re
from pathlib import Path

import pytest

from spin_components.errors import ConfigError
from spin_components.store.addresses import (
    HubAddress,
    S3Address,
    check_address,
    local_path,
    parse_address,
    parse_hub,
    parse_s3,
    scheme_of,
)


@pytest.mark.parametrize(
    ("uri", "scheme"),
    [("", "file"), ("a/b", "file"), ("/a:b", "file"), ("FILE:///a", "file"), ("S3://b", "s3"), ("hf://a/b", "hf")],
)
def test_a_path_has_the_scheme_of_files(uri: str, scheme: str) -> None:
    assert scheme_of(uri) == scheme


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("/a/b", "/a/b"),
        ("/a//b/./c/", "/a/b/c"),
        ("/a/../b", "/b"),
        ("/a b%20#?", "/a b%20#?"),
        ("file:///a/b", "/a/b"),
        ("file://localhost/a/b", "/a/b"),
        ("file:///a%20b%23%25", "/a b#%"),
        ("FILE:///a/../b", "/b"),
    ],
)
def test_a_path_and_a_file_uri_are_local(uri: str, path: str) -> None:
    assert local_path(uri, what="run.uri") == parse_address(uri, what="run.uri") == Path(path)


def test_a_relative_path_becomes_absolute() -> None:
    assert local_path("runs/../demo", what="run.uri") == Path.cwd() / "demo"


def test_a_file_uri_is_unquoted(tmp_path: Path) -> None:
    assert local_path((tmp_path / "a b#%ü").as_uri(), what="run.uri") == tmp_path / "a b#%ü"


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("", "run.uri is empty; expected a path, file:///path or s3://bucket/prefix"),
        ("gs://bucket/a", "run.uri = 'gs://bucket/a': scheme 'gs' is not supported here; expected a path"),
        ("https://host/a", "scheme 'https' is not supported"),
        ("://a", "scheme '' is not supported"),
        ("file://host/a", "names the host 'host'; write file:///path with three slashes"),
    ],
)
def test_other_addresses_are_refused(uri: str, says: str) -> None:
    for parse in (local_path, parse_address, check_address):
        with pytest.raises(ConfigError, match=re.escape(says)):
            parse(uri, what="run.uri")


def test_a_bucket_address_has_no_local_path() -> None:
    with pytest.raises(ConfigError, match="scheme 's3' is not supported here"):
        local_path("s3://bucket/a", what="run.uri")


@pytest.mark.parametrize(
    ("uri", "bucket", "key"),
    [
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/", "bucket", ""),
        ("s3://bucket/a/b", "bucket", "a/b"),
        ("s3://my.bucket-1/a//b/", "my.bucket-1", "a/b"),
        ("S3://bucket/ü b%20#?", "bucket", "ü b%20#?"),
        ("s3://bucket/a...b/.c", "bucket", "a...b/.c"),
    ],
)
def test_bucket_and_key_are_parsed(uri: str, bucket: str, key: str) -> None:
    assert parse_address(uri, what="run.uri") == S3Address(bucket, key)
    assert parse_s3(str(S3Address(bucket, key)), what="run.uri") == S3Address(bucket, key)


@pytest.mark.parametrize("uri", ["s3://", "s3:///a", "s3://b/a", "s3://-bucket", "s3://my bucket/a", "s3://bücket"])
def test_invalid_bucket_names_are_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"run.uri = {uri!r}: ") + ".* is not a valid bucket name"):
        parse_s3(uri, what="run.uri")


@pytest.mark.parametrize("uri", ["s3://bucket/a/../b", "s3://bucket/./a", "s3://bucket/.."])
def test_dots_in_keys_are_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"object storage has no '\.' and '\.\.'"):
        parse_s3(uri, what="run.uri")


@pytest.mark.parametrize("uri", ["s3://access:hidden@bucket/a", "s3://hidden@bucket", "s3://host:9000/hidden"])
def test_credentials_in_an_address_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(ConfigError, match="endpoint in S3_ENDPOINT and keys in AWS_ACCESS") as caught:
        check_address(uri, what="run.uri")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("hf://org/name", HubAddress("model", "org/name", "main", "")),
        ("hf://name", HubAddress("model", "name", "main", "")),
        ("hf://org/name@v1.0", HubAddress("model", "org/name", "v1.0", "")),
        ("hf://org/name@v1/sub/folder/", HubAddress("model", "org/name", "v1", "sub/folder")),
        ("hf://models/org/name", HubAddress("model", "org/name", "main", "")),
        ("HF://datasets/org/name/a.jsonl", HubAddress("dataset", "org/name", "main", "a.jsonl")),
        ("hf://datasets/org/na.me_1@abc123", HubAddress("dataset", "org/na.me_1", "abc123", "")),
    ],
)
def test_hub_addresses_are_parsed(uri: str, address: HubAddress) -> None:
    check_address(uri, what="model.base")
    assert parse_hub(uri, what="model.base") == address
    assert parse_hub(str(address), what="model.base") == address


@pytest.mark.parametrize("uri", ["hf://", "hf://org/name@", "hf://@v1", "hf://o rg/name", "hf://org/@v1"])
def test_invalid_hub_addresses_are_refused(uri: str) -> None:
    with pytest.raises(
        ConfigError, match=re.escape(f"model.base = {uri!r}: expected hf://org/name, hf://org/name@rev")
    ):
        check_address(uri, what="model.base")
