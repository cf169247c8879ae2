"""Requests to a bucket: each retried in this one place, each refusal said in words."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar
from xml.etree.ElementTree import ParseError

import tenacity
import urllib3.exceptions
from minio.datatypes import Part
from minio.deleteobjects import DeleteError, DeleteObject
from minio.error import InvalidResponseError, S3Error, ServerError

from spin_components.errors import SpinError, StorageAccessError, StorageError
from spin_components.store.limits import seconds
from spin_components.store.s3_client import connect

logger = logging.getLogger(__name__)

DEADLINE = "SPIN_STORAGE_DEADLINE_S"
"""Names the seconds for which a request is tried again before the step gives up; 300 by default."""

_PROBE_DEADLINE_S, _PROBE_TIMEOUT_S = 8.0, 4.0
_BLOCK_BYTES = 1 << 20
_UNREADABLE_TRIES = 4
_TRANSIENT = {
    "InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout", "Throttling", "ThrottlingException",
    "TooManyRequests", "RequestLimitExceeded", "OperationAborted", "IncompleteBody", "BadDigest",
    "XMinioServerNotInitialized", "XAmzContentSHA256Mismatch",
}  # fmt: skip
_MISSING = {"NoSuchKey", "NoSuchUpload"}
_ADVICE = {
    "InvalidAccessKeyId": "the access key is unknown there; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY (and that no proxy alters requests)",
    "AccessDenied": "these keys may not do that; check the bucket's policy, and the keys in AWS_ACCESS_KEY_ID",
    "AllAccessDisabled": "the account may not be used; ask whoever runs the storage",
    "NoSuchBucket": "there is no such bucket; create it, or correct its name",
    "ExpiredToken": "the session token has expired; fetch a new one into AWS_SESSION_TOKEN",
    "InvalidToken": "the session token is not valid; fetch a new one, or unset AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "this machine's clock and the server's differ too much; set the clock",
    "AuthorizationHeaderMalformed": "the region is probably another; check AWS_REGION",
    "PermanentRedirect": "the bucket is in another region; check AWS_REGION and S3_ENDPOINT",
    "InvalidBucketName": "the bucket's name is not valid there; correct it",
    "QuotaExceeded": "the bucket's quota is used up; free space or raise it",
    "XMinioStorageFull": "the storage is full; free space there",
}

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """A key below the bucket, its size, and the tag that changes with its content."""

    key: str
    num_bytes: int
    etag: str


class Bucket:
    """One bucket.

    Every request is tried again after time-outs, resets, 5xx answers and throttling, with exponential back-off and
    jitter, until a deadline; what trying again cannot mend fails at once.

    Args:
        name: of the bucket.
        deadline_s: for one request with all its repetitions.
        timeout_s: for one answer.

    Raises (all methods):
        StorageAccessError: keys, bucket, permission, clock or region are wrong.
        StorageError: no answer within the deadline.
    """

    def __init__(self, name: str, *, deadline_s: float | None = None, timeout_s: float = 30.0) -> None:
        self.name = name
        self._deadline_s = seconds(DEADLINE, 300) if deadline_s is None else deadline_s
        self._client, self.endpoint = connect(timeout_s=timeout_s)
        self._level = logging.WARNING

    def for_probing(self) -> Bucket:
        """The same bucket with little patience."""
        bucket = Bucket(self.name, deadline_s=_PROBE_DEADLINE_S, timeout_s=_PROBE_TIMEOUT_S)
        bucket._level = logging.DEBUG
        return bucket

    def put(self, key: str, content: bytes) -> None:
        """Write an object in one request."""
        self._call("PUT", key, lambda: self._client._put_object(self.name, key, content, {}))

    def get(self, key: str, offset: int = 0) -> bytes | None:
        """A small object from an offset on; None where it is missing."""

        def read() -> bytes:
            try:
                response = self._client.get_object(self.name, key, offset=offset)
            except S3Error as error:
                if error.code == "InvalidRange":
                    return b""
                raise
            try:
                return response.read()
            finally:
                response.close()

        return self._found("GET", key, read)

    def get_part(self, key: str, offset: int, num_bytes: int, sink: Callable[[int, bytes], None]) -> None:
        """Stream a range of an object into a sink, which is told the place of each block; more than once if need be."""

        def read() -> None:
            response = self._client.get_object(self.name, key, offset=offset, length=num_bytes)
            try:
                place = offset
                for block in response.stream(_BLOCK_BYTES):
                    sink(place, block)
                    place += len(block)
            finally:
                response.close()
            if place != offset + num_bytes:
                raise urllib3.exceptions.IncompleteRead(place - offset, offset + num_bytes - place)

        self._call("GET", key, read)

    def stat(self, key: str) -> ObjectInfo | None:
        """Size and tag of an object; None where it is missing."""
        found = self._found("HEAD", key, lambda: self._client.stat_object(self.name, key))
        return ObjectInfo(key, found.size or 0, found.etag or "") if found else None

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key begins with a prefix."""

        def read() -> list[ObjectInfo]:
            found = self._client.list_objects(self.name, prefix=prefix, recursive=True)
            return [
                ObjectInfo(item.object_name or "", item.size or 0, item.etag or "") for item in found if not item.is_dir
            ]

        yield from self._call("LIST", prefix, read)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there do not matter."""
        doomed = [DeleteObject(key) for key in keys]
        if not doomed:
            return

        def remove() -> list[DeleteError]:
            errors = [error for error in self._client.remove_objects(self.name, doomed) if error.code not in _MISSING]
            if any(error.code in _TRANSIENT for error in errors):
                raise ServerError(f"{len(errors)} objects were not deleted", 503)
            return errors

        for error in self._call("DELETE", "", remove):
            raise self._refusal("DELETE", error.name or "", error.code, error.message)

    def begin_upload(self, key: str) -> str:
        """Begin an upload in parts; returns its id."""
        return self._call("PUT", key, lambda: self._client._create_multipart_upload(self.name, key, {}))

    def put_part(self, key: str, upload: str, number: int, content: bytes) -> Part:
        """Upload part `number`, from 1."""
        tag = self._call("PUT", key, lambda: self._client._upload_part(self.name, key, content, None, upload, number))
        return Part(number, tag)

    def complete_upload(self, key: str, upload: str, parts: list[Part], num_bytes: int) -> None:
        """Make the parts one object, visible from now on."""

        def complete() -> None:
            try:
                self._client._complete_multipart_upload(self.name, key, upload, parts)
            except S3Error as error:
                if error.code != "NoSuchUpload":  # an earlier try may have done it without its answer arriving
                    raise
            found = self.stat(key)
            if found is None or found.num_bytes != num_bytes:  # S3 may answer 200 and then an error
                raise ServerError("the upload was completed, but its object is not there", 500)

        self._call("PUT", key, complete)

    def abort_upload(self, key: str, upload: str) -> None:
        """Drop an upload and its parts."""
        self._found("DELETE", key, lambda: self._client._abort_multipart_upload(self.name, key, upload))

    def uploads(self, prefix: str) -> list[tuple[str, str]]:
        """Key and id of every upload that was begun below a prefix and not ended."""

        def read() -> list[tuple[str, str]]:
            found: list[tuple[str, str]] = []
            marker: tuple[str | None, str | None] = (None, None)
            while True:
                page = self._client._list_multipart_uploads(
                    self.name, prefix=prefix, key_marker=marker[0], upload_id_marker=marker[1]
                )
                found += [(upload.object_name or "", upload.upload_id or "") for upload in page.uploads]
                following = (page.next_key_marker, page.next_upload_id_marker)
                if not page.is_truncated or following == marker:
                    return found
                marker = following

        found = self._call("LIST", prefix, read)
        return [(key, upload) for key, upload in found if key.startswith(prefix)]  # some servers ignore the prefix

    def _found(self, verb: str, key: str, operation: Callable[[], Result]) -> Result | None:
        try:
            return self._call(verb, key, operation)
        except StorageAccessError as error:
            if isinstance(error.__cause__, S3Error) and error.__cause__.code in _MISSING:
                return None
            raise

    def _call(self, verb: str, key: str, operation: Callable[[], Result]) -> Result:
        retrying = tenacity.Retrying(
            stop=tenacity.stop_before_delay(self._deadline_s),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=15),
            retry=_may_mend,
            before_sleep=lambda state: self._note(verb, key, state),
            reraise=True,
        )
        try:
            return retrying(operation)
        except SpinError:
            raise
        except S3Error as error:
            if is_transient(error):
                raise self._gave_up(verb, key, error) from error
            raise self._refusal(verb, key, error.code, error.message) from error
        except InvalidResponseError as error:
            if is_transient(error):
                raise self._gave_up(verb, key, error) from error
            raise StorageAccessError(
                f"{verb} {self._where(key)}: what answers at {self.endpoint} does not speak S3 "
                f"(HTTP {status_of(error)}); check S3_ENDPOINT"
            ) from error
        except (ParseError, UnicodeDecodeError) as error:
            raise StorageAccessError(
                f"{verb} {self._where(key)}: what answers at {self.endpoint} does not speak S3; check S3_ENDPOINT, and "
                "what stands between here and there"
            ) from error
        except urllib3.exceptions.SSLError as error:
            raise StorageAccessError(
                f"{verb} {self._where(key)}: no secure connection to {self.endpoint} ({error}); name the server's "
                "certificates in AWS_CA_BUNDLE, or write http:// in S3_ENDPOINT if it has none"
            ) from error
        except (ServerError, urllib3.exceptions.HTTPError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # this machine's disk
            raise self._gave_up(verb, key, error) from error
        except ValueError as error:
            raise StorageAccessError(f"{verb} {self._where(key)}: {error}; check the keys and the address") from error

    def _where(self, key: str) -> str:
        return f"s3://{self.name}/{key}"

    def _note(self, verb: str, key: str, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if state.attempt_number in (1, 4, 8) or state.attempt_number % 16 == 0:
            logger.log(self._level, "%s %s: %s; trying again", verb, self._where(key), _in_short(error))

    def _refusal(self, verb: str, key: str, code: str | None, message: str | None) -> StorageAccessError:
        advice = _ADVICE.get(code or "", message or "")
        return StorageAccessError(f"{verb} {self._where(key)} at {self.endpoint}: {code}: {advice}")

    def _gave_up(self, verb: str, key: str, error: BaseException) -> StorageError:
        return StorageError(
            f"{verb} {self._where(key)}: no useful answer from {self.endpoint} within {self._deadline_s:.0f} s "
            f"({_in_short(error)}); check that the storage runs and S3_ENDPOINT is right, then run the same command"
        )


def _may_mend(state: tenacity.RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, (ParseError, UnicodeDecodeError)):  # a proxy's error page, or no S3 at all
        return state.attempt_number < _UNREADABLE_TRIES
    return error is not None and is_transient(error)


def is_transient(error: BaseException) -> bool:
    """Whether a request may succeed when it is sent again."""
    if isinstance(error, S3Error):
        return error.code in _TRANSIENT or (error.code not in _ADVICE and _is_busy(error.response.status))
    if isinstance(error, (ServerError, InvalidResponseError)):
        return _is_busy(status_of(error))
    if isinstance(error, urllib3.exceptions.SSLError):
        return False
    return isinstance(error, (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError))


def _is_busy(status: int) -> bool:
    """Whether an HTTP status speaks of a passing trouble; 501 is for good."""
    return (status >= 500 and status != 501) or status in (408, 429)


def status_of(error: ServerError | InvalidResponseError) -> int:
    """The HTTP status that an answer without an S3 error had."""
    return error.status_code if isinstance(error, ServerError) else int(error._code)


def _in_short(error: BaseException | None) -> str:
    """An error without the address of a connection object in it."""
    text = str(error).rpartition("object at 0x")[2].partition(">: ")[2] or str(error)
    return f"{type(error).__name__}: {text}"[:200]
