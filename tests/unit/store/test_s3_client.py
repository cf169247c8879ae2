from __future__ import annotations

import re
from pathlib import Path

import pytest
from minio import Minio

from spin_components.errors import ConfigError, SpinError, StorageAccessError
from spin_components.store.s3_client import Endpoint, connect, find_endpoint

HERE = {"S3_ENDPOINT": "http://127.0.0.1:9000"}
KEYS = {"AWS_ACCESS_KEY_ID": "access", "AWS_SECRET_ACCESS_KEY": "hidden"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without credentials."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def keys_of(environment: dict[str, str]) -> tuple[str, str, str | None]:
    """Access key, secret key and session token of a client."""
    client, _ = connect({**HERE, **environment})
    provider = client._provider
    assert provider is not None
    credentials = provider.retrieve()
    return credentials.access_key, credentials.secret_key, credentials.session_token


def address_of(client: Minio) -> str:
    """URL of an object, as a client builds it."""
    return str(client.get_presigned_url("GET", "bucket", "key")).partition("?")[0]


@pytest.mark.parametrize(
    ("text", "host", "secure"),
    [
        ("http://127.0.0.1:9000", "127.0.0.1:9000", False),
        ("http://minio-service.kubeflow:9000/", "minio-service.kubeflow:9000", False),
        ("https://storage.example.com", "storage.example.com", True),
        ("storage.example.com:443", "storage.example.com:443", True),
        ("  http://[::1]:9000\n", "[::1]:9000", False),
    ],
)
def test_an_endpoint_is_a_url_or_a_host(text: str, host: str, secure: bool) -> None:
    assert find_endpoint({"S3_ENDPOINT": text}) == Endpoint(host, secure)


def test_the_first_endpoint_variable_is_used_and_aws_without_one() -> None:
    names = ("S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    environment = {name: f"http://{number}.example.com" for number, name in enumerate(names)}
    for number, name in enumerate(names):
        assert find_endpoint(environment).host == f"{number}.example.com"
        environment[name] = ""
    assert find_endpoint(environment) == Endpoint("s3.amazonaws.com", True)
    assert find_endpoint({}).is_aws
    assert not find_endpoint(HERE).is_aws


@pytest.mark.parametrize(
    "text",
    [
        "ftp://host",
        "http://",
        "http:///path",
        "https://host/bucket",
        "http://host?x=1",
        "http://[::1",
        "http://host:port",
    ],
)
def test_a_malformed_endpoint_is_refused(text: str) -> None:
    with pytest.raises(
        ConfigError, match=re.escape(f"S3_ENDPOINT = {text!r}: expected http://host:port or https://ho")
    ):
        connect({"S3_ENDPOINT": text, **KEYS})


@pytest.mark.parametrize("text", ["http://access:hidden@host", "https://hidden@host/path", "access:hidden@host"])
def test_keys_in_an_endpoint_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError, match="S3_ENDPOINT contains keys; set AWS_ACCESS_KEY_ID and") as caught:
        find_endpoint({"S3_ENDPOINT": text})
    assert "hidden" not in str(caught.value)


def test_keys_are_read_from_three_pairs_of_variables_in_order(tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = a4\naws_secret_access_key = s4\n")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "accesskey").write_text("a3\n")
    (tmp_path / "secret" / "secretkey").write_text("s3\n")
    environment = {
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "S3_SECRET_DIR": str(tmp_path / "secret"),
        "accesskey": "a2",
        "secretkey": "s2",
        "MINIO_ACCESS_KEY": "a1",
        "MINIO_SECRET_KEY": "s1",
        "AWS_ACCESS_KEY_ID": "a0",
        "AWS_SECRET_ACCESS_KEY": "s0",
        "AWS_SESSION_TOKEN": "token",
    }
    assert keys_of(environment) == ("a0", "s0", "token")
    del environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
    assert keys_of(environment) == ("a1", "s1", None)  # the token belongs to AWS's names
    del environment["MINIO_ACCESS_KEY"], environment["MINIO_SECRET_KEY"]
    assert keys_of(environment) == ("a2", "s2", None)
    del environment["accesskey"], environment["secretkey"]
    assert keys_of(environment) == ("a3", "s3", None)
    del environment["S3_SECRET_DIR"]
    assert keys_of(environment) == ("a4", "s4", None)


def test_a_profile_of_the_credentials_file_is_used(home: Path) -> None:
    (home / ".aws").mkdir()
    (home / ".aws" / "credentials").write_text(
        "[default]\naws_access_key_id = a\naws_secret_access_key = s\n"
        "[lab]\naws_access_key_id = b\naws_secret_access_key = t\naws_session_token = u\n"
    )
    assert keys_of({}) == ("a", "s", None)
    assert keys_of({"AWS_PROFILE": "lab"}) == ("b", "t", "u")


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
        ("MINIO_SECRET_KEY", "MINIO_ACCESS_KEY"),
        ("accesskey", "secretkey"),
    ],
)
def test_one_key_without_the_other_is_refused(present: str, missing: str) -> None:
    with pytest.raises(
        StorageAccessError, match=f"{present} is set but {missing} is not; storage needs both"
    ) as caught:
        connect({**HERE, present: "hidden", missing: ""})
    assert "hidden" not in str(caught.value)


def test_the_error_without_keys_names_the_variables() -> None:
    says = r"no keys for http://127\.0\.0\.1:9000: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.* S3_SECRET_DIR"
    with pytest.raises(StorageAccessError, match=says):
        connect(HERE)


@pytest.mark.parametrize("contents", [{}, {"accesskey": "a"}, {"accesskey": "", "secretkey": "hidden"}])
def test_a_mounted_secret_without_both_keys_is_refused(tmp_path: Path, contents: dict[str, str]) -> None:
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(StorageAccessError, match=r"S3_SECRET_DIR = .* accesskey and secretkey") as caught:
        connect({**HERE, "S3_SECRET_DIR": str(tmp_path)})
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "aws_access_key_id = a\naws_secret_access_key = hidden\n",
        "[default]\naws_access_key_id = a\naws_secret_access_key = hidden%hidden\n",
    ],
    ids=["no-section", "percent"],
)
def test_the_error_for_a_malformed_credentials_file_does_not_repeat_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "credentials").write_text(text)
    environment = {**HERE, "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials")}
    try:
        assert keys_of(environment) == ("a", "hidden%hidden", None)
    except SpinError as error:
        assert "hidden" not in str(error)
        assert "credentials" in str(error)


def test_the_addressing_style_is_path_except_on_aws_and_can_be_set() -> None:
    aws = {"S3_ENDPOINT": "https://s3.eu-west-1.amazonaws.com", "AWS_REGION": "eu-west-1", **KEYS}
    assert address_of(connect({**HERE, **KEYS})[0]) == "http://127.0.0.1:9000/bucket/key"
    assert address_of(connect(aws)[0]).startswith("https://bucket.s3.")
    assert "/bucket/key" in address_of(connect({**aws, "S3_ADDRESSING_STYLE": "path"})[0])
    named = {"S3_ENDPOINT": "https://storage.example.com", "S3_ADDRESSING_STYLE": "virtual", **KEYS}
    assert address_of(connect(named)[0]) == "https://bucket.storage.example.com/key"
    with pytest.raises(ConfigError, match="S3_ADDRESSING_STYLE = 'both': expected path, virtual or auto"):
        connect({**HERE, **KEYS, "S3_ADDRESSING_STYLE": "both"})


@pytest.mark.parametrize(
    ("variables", "region"),
    [
        ({}, "us-east-1"),
        ({"AWS_DEFAULT_REGION": "a-b-1"}, "a-b-1"),
        ({"AWS_REGION": "c-d-1", "AWS_DEFAULT_REGION": "x"}, "c-d-1"),
    ],
)
def test_the_region_comes_from_the_environment(variables: dict[str, str], region: str) -> None:
    client, _ = connect({**HERE, **KEYS, **variables})
    assert client._base_url.region == region


@pytest.mark.parametrize("name", ["AWS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_missing_certificates_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.pem': there is no such file"):
        connect({**HERE, **KEYS, name: str(tmp_path / "absent.pem")})
