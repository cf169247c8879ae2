"""Parsing of the addresses of data, models and runs: plain paths, `file://`, `s3://` and `hf://`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from spin_components.errors import ConfigError

_EXPECTED = "expected a path, file:///path or s3://bucket/prefix"
_BUCKET = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,61}[a-zA-Z0-9]")
_REPOSITORY = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?")


@dataclass(frozen=True, slots=True)
class S3Address:
    """A bucket and a key or prefix in it, without leading or trailing `/`."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}".rstrip("/")


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A repository on the Hugging Face Hub, or a part of one: `hf://[datasets/]org/name[@revision][/path]`.

    Attributes:
        kind: `model` or `dataset`.
        repository: `org/name`.
        revision: branch, tag or commit.
        path: file or folder within the repository; empty for the whole repository.
    """

    kind: str
    repository: str
    revision: str
    path: str

    def __str__(self) -> str:
        folder = "datasets/" if self.kind == "dataset" else ""
        path = f"/{self.path}" if self.path else ""
        return f"hf://{folder}{self.repository}@{self.revision}{path}"


def scheme_of(uri: str) -> str:
    """Return the scheme of an address in lower case, the text before `://`; `file` for a plain path."""
    scheme, separator, _ = uri.partition("://")
    return scheme.lower() if separator else "file"


def split_address(uri: str) -> tuple[str, str]:
    """Address of a data set and the split that is named after it, `address#split`; empty for none."""
    address, _, split = uri.rpartition("#")
    return (address, split) if address and re.fullmatch(r"\w+", split) else (uri, "")


def check_address(uri: str, *, what: str) -> None:
    """Check the form of an address, without contacting anything.

    Args:
        uri: a path, `file://`, `s3://` or `hf://`.
        what: name of the setting, for the error.

    Raises:
        ConfigError: the address is malformed or of an unknown scheme.
    """
    if what.startswith("data."):
        uri, _ = split_address(uri)
    if scheme_of(uri) == "hf":
        parse_hub(uri, what=what)
    else:
        parse_address(uri, what=what)


def parse_address(uri: str, *, what: str) -> Path | S3Address:
    """Parse the address of a file or folder, local or in object storage.

    Args:
        uri: a path, `file://` or `s3://`.
        what: name of the setting, for the error.

    Raises:
        ConfigError: the address is empty, malformed, or of another scheme.
    """
    return parse_s3(uri, what=what) if scheme_of(uri) == "s3" else local_path(uri, what=what)


def check_text(name: str, *, what: str) -> None:
    """Check that a path or a name is text that can be stored: UTF-8 without NUL.

    Raises:
        ConfigError: it is not.
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"{what} = {name!a} is not UTF-8 text; rename the file or folder") from error
    if "\0" in name:
        raise ConfigError(f"{what} = {name!r} has a NUL character, which no path may have; correct it")


def local_path(uri: str, *, what: str) -> Path:
    """Return the absolute, normalized path of a plain path or a `file://` URI.

    Raises:
        ConfigError: the address is empty, names a host, or is of another scheme.
    """
    if not uri:
        raise ConfigError(f"{what} is empty; {_EXPECTED}")
    check_text(uri, what=what)
    if scheme_of(uri) != "file":
        raise ConfigError(f"{what} = {uri!r}: scheme {scheme_of(uri)!r} is not supported here; {_EXPECTED}")
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc not in ("", "localhost"):
        host = parts.netloc.rpartition("@")[2]
        raise ConfigError(f"{what} = {uri!r} names the host {host!r}; write file:///path with three slashes")
    path = unquote(parts.path, errors="surrogateescape") if parts.scheme == "file" else uri
    check_text(path, what=what)
    return Path(os.path.normpath(Path(path).absolute()))


def parse_s3(uri: str, *, what: str) -> S3Address:
    """Parse `s3://bucket/key`.

    Raises:
        ConfigError: the bucket's name is missing or invalid, the address has credentials or a port, or the key has
            `.` or `..`.
    """
    check_text(uri, what=what)
    bucket, _, key = uri.partition("://")[2].partition("/")
    if "@" in bucket or ":" in bucket:
        raise ConfigError(
            f"{what} has credentials or a port before the first '/'; expected s3://bucket/prefix. "
            "Set the endpoint in S3_ENDPOINT and keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(f"{what} = {uri!r}: {bucket!r} is not a valid bucket name; expected s3://bucket/prefix")
    parts = [part for part in key.split("/") if part]
    if "." in parts or ".." in parts:
        raise ConfigError(f"{what} = {uri!r}: object storage has no '.' and '..'; write the resolved prefix")
    return S3Address(bucket, "/".join(parts))


def parse_hub(uri: str, *, what: str) -> HubAddress:
    """Parse `hf://[datasets/]org/name[@revision][/path]`; the revision defaults to `main`.

    Raises:
        ConfigError: the address has another form.
    """
    rest = uri.partition("://")[2].strip("/")
    kind = "model"
    for prefix, prefix_kind in (("datasets/", "dataset"), ("models/", "model")):
        if rest.startswith(prefix):
            kind, rest = prefix_kind, rest.removeprefix(prefix)
    parts = rest.split("/")
    repository, path = "/".join(parts[:2]), "/".join(parts[2:])
    name, _, revision = repository.partition("@")
    if ".." in parts or "." in parts:
        raise ConfigError(f"{what} = {uri!r}: a repository has no '.' and '..'; write the path of the file in it")
    if not _REPOSITORY.fullmatch(name) or (revision == "" and "@" in repository):
        raise ConfigError(f"{what} = {uri!r}: expected hf://org/name, hf://org/name@revision or hf://datasets/org/name")
    return HubAddress(kind, name, revision or "main", path)


def filled_in(uri: str, run_id: str, created: str, *, what: str) -> str:
    """Fill in the placeholders of a run's address: `{id}` and `{time}`, which give each run storage of its own.

    Args:
        uri: the address.
        run_id: KFP's id of the run.
        created: when KFP created the run, as 2026-11-30T12:17:52Z.
        what: name of the setting, for the error.

    Raises:
        ConfigError: the time is asked for and not known.
    """
    if "{time}" in uri:
        stamp = re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(\.\d+)?Z", created)
        if not stamp:
            raise ConfigError(
                f"{what} = {uri!r}: this KFP does not tell when a run was created (found {created!r}); use {{id}}, "
                "which is the id of the run, in the place of {time}"
            )
        uri = uri.replace("{time}", "{}{}{}T{}{}{}Z".format(*stamp.groups()))
    return uri.replace("{id}", run_id)
