"""S3 client configured by environment variables only, so that no parameter, manifest or log line holds credentials.

| variable | meaning |
| --- | --- |
| S3_ENDPOINT (AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL) | http(s)://host[:port]; AWS if not set |
| AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN | keys |
| MINIO_ACCESS_KEY, MINIO_SECRET_KEY; accesskey, secretkey | keys by MinIO's names, and by those of KFP's Secret |
| S3_SECRET_DIR | a mounted Secret: a folder with the files accesskey and secretkey |
| AWS_SHARED_CREDENTIALS_FILE, AWS_PROFILE | AWS's credentials file |
| AWS_WEB_IDENTITY_TOKEN_FILE, AWS_CONTAINER_CREDENTIALS_* | identity of a pod; on AWS, also of an instance |
| AWS_REGION (AWS_DEFAULT_REGION) | region |
| AWS_CA_BUNDLE (SSL_CERT_FILE) | certificates to trust |
| S3_ADDRESSING_STYLE | path or virtual; virtual on AWS, path elsewhere |
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.credentials.credentials import Credentials
from minio.credentials.providers import IamAwsProvider, Provider, StaticProvider
from urllib3.util import Timeout

from spin_components.errors import ConfigError, StorageAccessError

_AWS = "s3.amazonaws.com"
_KEY_NAMES = (
    ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    ("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY"),
    ("accesskey", "secretkey"),
)
_IDENTITY = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_CONNECTIONS = 16
_SET_KEYS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and S3_ENDPOINT where it is not AWS), or S3_SECRET_DIR to a "
    "mounted Secret with accesskey and secretkey"
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Host, with its port, and scheme of the S3 server."""

    host: str
    secure: bool

    @property
    def is_aws(self) -> bool:
        """Whether the server is AWS."""
        return self.host.endswith("amazonaws.com") or self.host.endswith("amazonaws.com.cn")

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.host}"


def find_endpoint(environment: Mapping[str, str]) -> Endpoint:
    """Return the endpoint from environment variables; AWS if none is set.

    Raises:
        ConfigError: the variable is not the URL of a server, or has credentials.
    """
    for name in ("S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if text := environment.get(name, "").strip():
            if "@" in text:
                raise ConfigError(f"{name} contains keys; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
            try:
                parts = urlsplit(text if "://" in text else f"https://{text}")
                is_valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
            except ValueError:
                is_valid = False
            if not is_valid or parts.path.strip("/") or parts.query:
                raise ConfigError(f"{name} = {text!r}: expected http://host:port or https://host, and no path")
            return Endpoint(parts.netloc, parts.scheme == "https")
    return Endpoint(_AWS, True)


def connect(environment: Mapping[str, str] | None = None, *, timeout_s: float = 30.0) -> tuple[Minio, Endpoint]:
    """Create a client without retries; `bucket.Bucket` adds them.

    Args:
        environment: variables; `os.environ` by default.
        timeout_s: read timeout, seconds; the connect timeout is at most 5 s.

    Returns: the client and its endpoint.

    Raises:
        ConfigError: the endpoint or another variable is malformed.
        StorageAccessError: no keys are configured.
    """
    environment = os.environ if environment is None else environment
    endpoint = find_endpoint(environment)
    bundle = environment.get("AWS_CA_BUNDLE") or environment.get("SSL_CERT_FILE")
    if bundle and not Path(bundle).is_file():
        raise ConfigError(f"AWS_CA_BUNDLE or SSL_CERT_FILE = {bundle!r}: there is no such file")
    pool = urllib3.PoolManager(
        timeout=Timeout(connect=min(5.0, timeout_s), read=timeout_s),
        maxsize=_CONNECTIONS,
        cert_reqs="CERT_REQUIRED",
        ca_certs=bundle or _certificates(),
        retries=False,
    )
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    if not region and not endpoint.is_aws:
        region = "us-east-1"
    client = Minio(
        endpoint.host,
        secure=endpoint.secure,
        region=region,
        credentials=_credentials(environment, endpoint),
        http_client=pool,
    )
    match environment.get("S3_ADDRESSING_STYLE", "auto"):
        case "path":
            client.disable_virtual_style_endpoint()  # type: ignore[no-untyped-call]
        case "virtual":
            client.enable_virtual_style_endpoint()  # type: ignore[no-untyped-call]
        case "auto" | "":
            pass
        case other:
            raise ConfigError(f"S3_ADDRESSING_STYLE = {other!r}: expected path, virtual or auto")
    return client, endpoint


def _credentials(environment: Mapping[str, str], endpoint: Endpoint) -> Provider:
    for access, secret in _KEY_NAMES:
        if environment.get(access) and environment.get(secret):
            token = environment.get("AWS_SESSION_TOKEN") if access.startswith("AWS") else None
            return StaticProvider(environment[access], environment[secret], token or None)
        if environment.get(access) or environment.get(secret):
            present, missing = (access, secret) if environment.get(access) else (secret, access)
            raise StorageAccessError(f"{present} is set but {missing} is not; storage needs both")
    if folder := environment.get("S3_SECRET_DIR"):
        return _mounted_keys(Path(folder))
    shared = Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws" / "credentials")
    if shared.is_file():
        return _shared_keys(shared, environment.get("AWS_PROFILE") or "default")
    if endpoint.is_aws or any(environment.get(name) for name in _IDENTITY):
        timeout = Timeout(connect=2.0, read=5.0)
        inner = IamAwsProvider(http_client=urllib3.PoolManager(timeout=timeout, retries=False))
        return _ExplainedProvider(
            inner, f"the identity of this machine or pod, tried because no keys are set for {endpoint}"
        )
    raise StorageAccessError(f"no keys for {endpoint}: {_SET_KEYS}")


class _ExplainedProvider(Provider):
    """Wraps a credentials provider to name it in its errors."""

    def __init__(self, inner: Provider, name: str) -> None:
        self._inner, self._name = inner, name

    def retrieve(self) -> Credentials:
        try:
            return self._inner.retrieve()
        except (ValueError, KeyError, OSError, urllib3.exceptions.HTTPError) as error:
            raise StorageAccessError(f"no keys from {self._name} ({error}); {_SET_KEYS}") from error


def _mounted_keys(folder: Path) -> Provider:
    """Read keys from a mounted Kubernetes Secret."""
    try:
        access, secret = ((folder / name).read_text("utf-8").strip() for name in ("accesskey", "secretkey"))
    except OSError as error:
        raise StorageAccessError(
            f"S3_SECRET_DIR = {str(folder)!r}: {error.strerror}; expected the files accesskey and secretkey"
        ) from error
    except UnicodeDecodeError:
        access = secret = ""
    if not (access and secret):
        raise StorageAccessError(
            f"S3_SECRET_DIR = {str(folder)!r}: one of accesskey and secretkey is empty or not text; check the Secret"
        )
    return StaticProvider(access, secret)


def _shared_keys(file: Path, profile: str) -> Provider:
    """Read keys from AWS's credentials file; errors do not repeat its content."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, configparser.Error):
        raise StorageAccessError(f"{file} cannot be read as AWS's credentials file; {_SET_KEYS}") from None
    table = parser[profile] if parser.has_section(profile) else {}
    access, secret = table.get("aws_access_key_id"), table.get("aws_secret_access_key")
    if not (access and secret):
        raise StorageAccessError(f"{file} has no keys for the profile {profile!r}; set AWS_PROFILE, or {_SET_KEYS}")
    return StaticProvider(access, secret, table.get("aws_session_token") or None)


def _certificates() -> str:
    import certifi

    return certifi.where()
