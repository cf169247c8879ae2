"""S3 requests with retries, and errors that explain S3's error codes. No other module retries storage requests."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar
from xml.etree.ElementTree import ParseError

import tenacity
import urllib3.exceptions
from minio.datatypes import Part
from minio.deleteobjects import DeleteError, DeleteObject
from minio.error import InvalidResponseError, S3Error, ServerError

from spin_components.errors import SpinError, StorageAccessError, StorageError
from spin_components.machine import seconds
from spin_components.store.s3_client import connect
from spin_components.store.s3_errors import ADVICE, TRANSIENT, describe, is_transient, status_of
from spin_components.store.stored import Guard, Stored

logger = logging.getLogger(__name__)

DEADLINE = "SPIN_STORAGE_DEADLINE_S"
"""Environment variable with the seconds for which a failing request is retried; default 300."""

_PROBE_DEADLINE_S, _PROBE_TIMEOUT_S = 8.0, 4.0
_BLOCK_BYTES = 1 << 20
_UNREADABLE_ATTEMPTS = 4
_MISSING = {"NoSuchKey", "NoSuchUpload"}
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object's key in its bucket, its size in bytes, and its ETag, which changes with the content."""

    key: str
    num_bytes: int
    etag: str


class Bucket:
    """Client of one bucket that retries requests.

    After time-outs, connection resets, 5xx responses and throttling a request is retried with exponential back-off and
    jitter until a deadline; other errors are raised at once.

    Args:
        name: name of the bucket.
        deadline_s: seconds for one request with all its retries; by default from `SPIN_STORAGE_DEADLINE_S`.
        timeout_s: seconds for one response.

    Raises (all methods):
        StorageAccessError: keys, bucket, permission, clock or region are wrong.
        StorageError: no response within the deadline.
    """

    def __init__(self, name: str, *, deadline_s: float | None = None, timeout_s: float = 30.0) -> None:
        self.name = name
        self._deadline_s = seconds(DEADLINE, 300) if deadline_s is None else deadline_s
        self._client, self.endpoint = connect(timeout_s=timeout_s)
        self._level = logging.WARNING

    def with_short_deadline(self) -> Bucket:
        """Return a client of the same bucket with a short deadline."""
        bucket = Bucket(self.name, deadline_s=_PROBE_DEADLINE_S, timeout_s=_PROBE_TIMEOUT_S)
        bucket._level = logging.DEBUG
        return bucket

    def put(
        self,
        key: str,
        content: bytes,
        headers: Mapping[str, str] | None = None,
        guard: Guard | None = None,
    ) -> None:
        """Write an object in one request, with additional headers; `guard` is called before each try."""

        def write() -> None:
            if guard is not None:
                guard()
            self._client._put_object(self.name, key, content, dict(headers or {}))

        self._call("PUT", key, write)

    def get(self, key: str, offset: int = 0) -> bytes | None:
        """Read a small object from an offset in bytes; None if it does not exist."""
        stored = self.read(key, offset)
        return None if stored is None else stored.content

    def read(self, key: str, offset: int = 0) -> Stored | None:
        """Read a small object as `get`, with its ETag and the server's times."""

        def read() -> Stored:
            try:
                response = self._client.get_object(self.name, key, offset=offset)
            except S3Error as error:
                if error.code == "InvalidRange":
                    return Stored(b"", "")
                raise
            try:
                tag = (response.headers.get("etag") or "").strip('"')
                times = (_time_of(response.headers.get(name)) for name in ("last-modified", "date"))
                return Stored(response.read(), tag, *times)
            finally:
                response.close()

        return self._call_or_none("GET", key, read)

    def get_part(
        self, key: str, offset: int, num_bytes: int, sink: Callable[[int, bytes], None], etag: str = ""
    ) -> None:
        """Stream a range of an object into a sink.

        Args:
            key: key of the object.
            offset: start of the range, bytes.
            num_bytes: length of the range.
            sink: called with the offset in the object and the bytes of each block; blocks are repeated after a retry.
            etag: ETag that the object must have; empty for any.
        """

        def read() -> None:
            response = self._client.get_object(self.name, key, offset=offset, length=num_bytes)
            try:
                found = response.headers.get("ETag", "").removeprefix("W/").strip('"')
                if found and etag and found != etag.removeprefix("W/").strip('"'):
                    raise StorageError(
                        f"{self._address(key)} was replaced while it was read; run the same command again"
                    )
                position = offset
                for block in response.stream(_BLOCK_BYTES):
                    sink(position, block)
                    position += len(block)
            finally:
                response.close()
            if position != offset + num_bytes:
                raise urllib3.exceptions.IncompleteRead(position - offset, offset + num_bytes - position)

        self._call("GET", key, read)

    def stat(self, key: str) -> ObjectInfo | None:
        """Return size and ETag of an object; None if it does not exist."""
        item = self._call_or_none("HEAD", key, lambda: self._client.stat_object(self.name, key))
        return ObjectInfo(key, item.size or 0, item.etag or "") if item else None

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Iterate over the objects whose key begins with a prefix."""

        def read() -> list[ObjectInfo]:
            items = self._client.list_objects(self.name, prefix=prefix, recursive=True)
            return [
                ObjectInfo(item.object_name or "", item.size or 0, item.etag or "") for item in items if not item.is_dir
            ]

        yield from self._call("LIST", prefix, read)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; missing ones are ignored."""
        objects = [DeleteObject(key) for key in keys]
        if not objects:
            return

        def remove() -> list[DeleteError]:
            errors = [error for error in self._client.remove_objects(self.name, objects) if error.code not in _MISSING]
            if any(error.code in TRANSIENT for error in errors):
                raise ServerError(f"{len(errors)} objects were not deleted", 503)
            return errors

        for error in self._call("DELETE", "", remove):
            raise self._refusal("DELETE", error.name or "", error.code, error.message)

    def begin_upload(self, key: str) -> str:
        """Start a multipart upload; returns its id."""
        return self._call("PUT", key, lambda: self._client._create_multipart_upload(self.name, key, {}))

    def put_part(self, key: str, upload: str, number: int, content: bytes) -> Part:
        """Upload part `number`, counted from 1, of a multipart upload."""
        tag = self._call("PUT", key, lambda: self._client._upload_part(self.name, key, content, None, upload, number))
        return Part(number, tag)

    def complete_upload(
        self, key: str, upload: str, parts: list[Part], num_bytes: int, guard: Guard | None = None
    ) -> None:
        """Complete a multipart upload, which makes the object visible; `guard` is called before each try."""

        def complete() -> None:
            if guard is not None:
                guard()
            try:
                self._client._complete_multipart_upload(self.name, key, upload, parts)
            except S3Error as error:
                if error.code != "NoSuchUpload":  # an earlier attempt may have succeeded with its response lost
                    raise
            info = self.stat(key)
            if info is None or info.num_bytes != num_bytes:  # S3 may send status 200 and then an error
                raise ServerError("the upload was completed, but its object does not exist", 500)

        self._call("PUT", key, complete)

    def abort_upload(self, key: str, upload: str) -> None:
        """Abort a multipart upload and delete its parts."""
        self._call_or_none("DELETE", key, lambda: self._client._abort_multipart_upload(self.name, key, upload))

    def uploads(self, prefix: str) -> list[tuple[str, str]]:
        """List key and id of the unfinished multipart uploads below a prefix."""

        def read() -> list[tuple[str, str]]:
            uploads: list[tuple[str, str]] = []
            marker: tuple[str | None, str | None] = (None, None)
            while True:
                page = self._client._list_multipart_uploads(
                    self.name, prefix=prefix, key_marker=marker[0], upload_id_marker=marker[1]
                )
                uploads += [(upload.object_name or "", upload.upload_id or "") for upload in page.uploads]
                next_marker = (page.next_key_marker, page.next_upload_id_marker)
                if not page.is_truncated or next_marker == marker:
                    return uploads
                marker = next_marker

        uploads = self._call("LIST", prefix, read)
        return [(key, upload) for key, upload in uploads if key.startswith(prefix)]  # some servers ignore the prefix

    def _call_or_none(self, verb: str, key: str, operation: Callable[[], Result]) -> Result | None:
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
            retry=_should_retry,
            before_sleep=lambda state: self._log_retry(verb, key, state),
            reraise=True,
        )
        try:
            return retrying(operation)
        except SpinError:
            raise
        except S3Error as error:
            if is_transient(error):
                raise self._no_response(verb, key, error) from error
            raise self._refusal(verb, key, error.code, error.message) from error
        except InvalidResponseError as error:
            if is_transient(error):
                raise self._no_response(verb, key, error) from error
            raise StorageAccessError(
                f"{verb} {self._address(key)}: the response of {self.endpoint} is not S3 "
                f"(HTTP {status_of(error)}); check S3_ENDPOINT"
            ) from error
        except (ParseError, UnicodeDecodeError) as error:
            raise StorageAccessError(
                f"{verb} {self._address(key)}: the response of {self.endpoint} is not S3; check S3_ENDPOINT, and "
                "proxies on the way"
            ) from error
        except urllib3.exceptions.SSLError as error:
            raise StorageAccessError(
                f"{verb} {self._address(key)}: no secure connection to {self.endpoint} ({error}); set AWS_CA_BUNDLE to "
                "the server's certificates, or write http:// in S3_ENDPOINT if it has none"
            ) from error
        except (ServerError, urllib3.exceptions.HTTPError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # the local disk is full
            raise self._no_response(verb, key, error) from error
        except ValueError as error:
            raise StorageAccessError(f"{verb} {self._address(key)}: {error}; check the keys and the address") from error

    def _address(self, key: str) -> str:
        return f"s3://{self.name}/{key}"

    def _log_retry(self, verb: str, key: str, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if state.attempt_number in (1, 4, 8) or state.attempt_number % 16 == 0:
            logger.log(self._level, "%s %s: %s; retrying", verb, self._address(key), describe(error))

    def _refusal(self, verb: str, key: str, code: str | None, message: str | None) -> StorageAccessError:
        advice = ADVICE.get(code or "", message or "")
        return StorageAccessError(f"{verb} {self._address(key)} at {self.endpoint}: {code}: {advice}")

    def _no_response(self, verb: str, key: str, error: BaseException) -> StorageError:
        return StorageError(
            f"{verb} {self._address(key)}: no valid response from {self.endpoint} within {self._deadline_s:.0f} s "
            f"({describe(error)}); check that the storage runs and S3_ENDPOINT is right, then run the same command"
        )


def _should_retry(state: tenacity.RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, (ParseError, UnicodeDecodeError)):  # a proxy's error page, or a server that is not S3
        return state.attempt_number < _UNREADABLE_ATTEMPTS
    return error is not None and is_transient(error)


def _time_of(header: str | None) -> float | None:
    """Seconds since 1970 of an HTTP date; None where it is missing or malformed."""
    try:
        return parsedate_to_datetime(header).timestamp() if header else None
    except ValueError:
        return None
