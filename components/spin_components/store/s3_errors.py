"""Errors of S3 requests: which may be retried, and what to do about the others."""

from __future__ import annotations

import urllib3.exceptions
from minio.error import InvalidResponseError, S3Error, ServerError

TRANSIENT = {
    "InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout", "Throttling", "ThrottlingException",
    "TooManyRequests", "RequestLimitExceeded", "OperationAborted", "IncompleteBody", "BadDigest",
    "XMinioServerNotInitialized", "XAmzContentSHA256Mismatch",
}  # fmt: skip
"""Codes of errors after which the request is repeated."""

ADVICE = {
    "InvalidAccessKeyId": "the access key is unknown to the server; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY (and that no proxy alters requests)",
    "AccessDenied": "these keys have no permission; check the bucket's policy, and the keys in AWS_ACCESS_KEY_ID",
    "AllAccessDisabled": "the account is disabled; contact the storage's administrator",
    "NoSuchBucket": "the bucket does not exist; create it, or correct its name",
    "ExpiredToken": "the session token has expired; fetch a new one into AWS_SESSION_TOKEN",
    "InvalidToken": "the session token is not valid; fetch a new one, or unset AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "this machine's clock and the server's differ too much; set the clock",
    "AuthorizationHeaderMalformed": "the region is probably wrong; check AWS_REGION",
    "PermanentRedirect": "the bucket is in another region; check AWS_REGION and S3_ENDPOINT",
    "InvalidBucketName": "the bucket's name is invalid; correct it",
    "QuotaExceeded": "the bucket's quota is exhausted; free space or raise it",
    "XMinioStorageFull": "the storage is full; free space on it",
}
"""What to do about an error, by S3's code."""


def is_transient(error: BaseException) -> bool:
    """Whether a request that failed with this error may succeed when it is retried."""
    if isinstance(error, S3Error):
        return error.code in TRANSIENT or (error.code not in ADVICE and _is_busy(error.response.status))
    if isinstance(error, (ServerError, InvalidResponseError)):
        return _is_busy(status_of(error))
    if isinstance(error, urllib3.exceptions.SSLError):
        return False
    return isinstance(error, (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError))


def _is_busy(status: int) -> bool:
    """Whether an HTTP status means a temporary failure; 501, not implemented, does not."""
    return (status >= 500 and status != 501) or status in (408, 429)


def status_of(error: ServerError | InvalidResponseError) -> int:
    """Return the HTTP status of a response without an S3 error."""
    return error.status_code if isinstance(error, ServerError) else int(error._code)


def describe(error: BaseException | None) -> str:
    """Error type and message, without the memory address of urllib3's connection object; at most 200 characters."""
    text = str(error).rpartition("object at 0x")[2].partition(">: ")[2] or str(error)
    return f"{type(error).__name__}: {text}"[:200]
