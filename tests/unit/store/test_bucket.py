from __future__ import annotations

import http.server
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from spin_components.errors import SpinError, StorageAccessError, StorageError
from spin_components.store.bucket import Bucket
from support.loopback import Loopback, listening, refusal, reply, times
from support.s3_server import BUCKET, SECRET_KEY, S3Server, free_port

KEY = "folder/ü b+%.json"


@pytest.fixture
def bucket(s3: S3Server) -> Bucket:
    return Bucket(BUCKET)


def through(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The bucket behind a scripted server."""
    monkeypatch.setenv("S3_ENDPOINT", server.endpoint)
    return Bucket(BUCKET)


def refused(bucket: Bucket, kind: type[SpinError] = StorageAccessError) -> str:
    """Message of the error that a write raises; checked not to contain the secret."""
    with pytest.raises(kind) as caught:
        bucket.put(KEY, b"x")
    assert type(caught.value) is kind
    assert f"s3://{bucket.name}/{KEY}" in str(caught.value)
    assert SECRET_KEY not in f"{caught.value!r} {caught.value.__cause__!r}"
    return str(caught.value)


def test_an_object_is_read_whole_in_part_and_by_its_size(bucket: Bucket) -> None:
    bucket.put(KEY, b"abcdef")
    assert [bucket.get(KEY), bucket.get(KEY, 4)] == [b"abcdef", b"ef"]
    blocks: list[tuple[int, bytes]] = []
    bucket.get_part(KEY, 1, 4, lambda offset, block: blocks.append((offset, block)))
    assert (blocks[0][0], b"".join(block for _, block in blocks)) == (1, b"bcde")
    info = bucket.stat(KEY)
    assert info is not None
    assert (info.key, info.num_bytes) == (KEY, 6)
    assert list(bucket.objects("folder/ü b")) == [info]


@pytest.mark.usefixtures("s3")
def test_reading_from_the_end_returns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(lambda request: refusal(416, "InvalidRange")) as server:  # as AWS and MinIO answer
        assert through(server, monkeypatch).get(KEY, 6) == b""


def test_the_tag_of_an_object_changes_with_its_content(bucket: Bucket) -> None:
    tags = set()
    for content in (b"a", b"b", b"a"):
        bucket.put("tagged", content)
        info = bucket.stat("tagged")
        assert info is not None
        tags.add(info.etag)
    assert len(tags) == 2


def test_a_missing_object_is_none_and_can_be_deleted(bucket: Bucket) -> None:
    bucket.put("doomed/1", b"")
    bucket.put("doomed/2", b"x")
    bucket.delete(["doomed/1", "doomed/2", "doomed/3"])
    bucket.delete([])
    assert (bucket.get("doomed/1"), bucket.stat("doomed/2"), list(bucket.objects("doomed/"))) == (None, None, [])


def test_more_objects_are_listed_and_deleted_than_one_request_takes(bucket: Bucket, s3: S3Server) -> None:
    s3.path("listed").mkdir()
    keys = [f"listed/{number:05d}" for number in range(1003)]  # a thousand is S3's limit
    for key in keys:
        s3.path(key).write_bytes(b"")
    assert [info.key for info in bucket.objects("listed/")] == keys
    bucket.delete(keys)
    assert list(bucket.objects("listed/")) == []


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("AWS_ACCESS_KEY_ID", "another", "InvalidAccessKeyId: .* check AWS_ACCESS_KEY_ID"),
        ("AWS_SECRET_ACCESS_KEY", f"{SECRET_KEY}x", "SignatureDoesNotMatch: .* check AWS_SECRET_ACCESS_KEY"),
    ],
)
@pytest.mark.usefixtures("s3")
def test_the_error_for_wrong_keys_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    message = refused(Bucket(BUCKET))

    assert re.search(says, message)


def test_a_missing_bucket_is_named(s3: S3Server) -> None:
    assert "NoSuchBucket: the bucket does not exist; create it, or correct its name" in refused(Bucket("absent"))
    assert f"s3://absent/{KEY} at {s3.endpoint}" in refused(Bucket("absent"))


@pytest.mark.usefixtures("s3")
def test_an_invalid_bucket_name_is_refused() -> None:
    assert "InvalidBucketName: the bucket's name is invalid" in refused(Bucket("No.Bucket"))


def test_the_error_for_a_wrong_clock_says_so(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the server's clock is an hour ahead; S3 allows 15 minutes
    (tmp_path / "sitecustomize.py").write_text(
        "import datetime\n"
        "class Ahead(datetime.datetime):\n"
        "    @classmethod\n"
        "    def now(cls, tz=None):\n"
        "        return super().now(tz) + datetime.timedelta(hours=1)\n"
        "datetime.datetime = Ahead\n"
    )
    server = S3Server(tmp_path / "s3", PYTHONPATH=str(tmp_path))
    try:
        monkeypatch.setenv("S3_ENDPOINT", server.endpoint)
        message = refused(Bucket(BUCKET))
    finally:
        server.kill()
    assert "RequestTimeTooSkewed: this machine's clock and the server's differ too much; set the clock" in message


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (400, "ExpiredToken", "fetch a new one into AWS_SESSION_TOKEN"),
        (403, "InvalidToken", "or unset AWS_SESSION_TOKEN"),
        (403, "AccessDenied", "these keys have no permission; check the bucket's policy"),
        (400, "AuthorizationHeaderMalformed", "check AWS_REGION"),
        (403, "QuotaExceeded", "free space or raise it"),
        (507, "XMinioStorageFull", "the storage is full"),
        (409, "UnheardOf", "UnheardOf: said the server"),
    ],
)
@pytest.mark.usefixtures("s3")
def test_permanent_errors_are_not_retried(monkeypatch: pytest.MonkeyPatch, status: int, code: str, says: str) -> None:
    with listening(lambda request: refusal(status, code)) as server:
        assert says in refused(through(server, monkeypatch))
        assert len(server.requests) == 1


@pytest.mark.parametrize("code", ["ExpiredToken", "RequestTimeTooSkewed"])
@pytest.mark.usefixtures("s3")
def test_a_head_request_refused_without_a_reason_is_an_access_error(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    # the response to HEAD has no body: an expired token shows as status 400, other refusals as 403
    status = 400 if code == "ExpiredToken" else 403
    with listening(lambda request: reply(status)) as server, pytest.raises(StorageAccessError, match=f"/{BUCKET}/key"):
        through(server, monkeypatch).stat("key")


def test_a_refused_deletion_names_the_object(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"<DeleteResult><Error><Key>a/b</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>"
    with (
        listening(lambda request: reply(200, body)) as server,
        pytest.raises(StorageAccessError, match=rf"DELETE s3://{BUCKET}/a/b at .*: AccessDenied: these keys have no"),
    ):
        through(server, monkeypatch).delete(["a/b", "a/c"])


@pytest.mark.usefixtures("s3", "retry_clock")
def test_a_refused_connection_is_an_error_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("S3_ENDPOINT", endpoint)
    monkeypatch.setenv("SPIN_STORAGE_DEADLINE_S", "10")
    message = refused(Bucket(BUCKET), StorageError)
    assert f"no valid response from {endpoint}" in message
    assert "within 10 s" in message
    assert "check that the storage runs and S3_ENDPOINT is right" in message


@pytest.mark.usefixtures("s3", "retry_clock")
def test_an_unknown_host_is_an_error_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_ENDPOINT", "http://storage.invalid:9000")
    assert "http://storage.invalid:9000" in refused(Bucket(BUCKET, deadline_s=2.0), StorageError)


def test_the_error_for_https_without_certificates_says_so(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_ENDPOINT", s3.endpoint.replace("http:", "https:"))
    message = refused(Bucket(BUCKET))
    assert "no secure connection" in message
    assert "AWS_CA_BUNDLE to the server's certificates, or write http:// in S3_ENDPOINT if it has none" in message


@pytest.fixture
def website(tmp_path: Path) -> Iterator[str]:
    """A web server without S3; it answers 404 to GET and 501 to PUT, as HTML."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("s3")
def test_a_website_is_not_s3(website: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_ENDPOINT", website)
    with pytest.raises(StorageAccessError, match=rf"the response of {website} is not S3 \(HTTP 404\)"):
        Bucket(BUCKET).get(KEY)


@pytest.mark.usefixtures("s3", "retry_clock")
def test_a_website_that_refuses_writes_is_not_s3(website: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_ENDPOINT", website)
    assert "is not S3 (HTTP 501); check S3_ENDPOINT" in refused(Bucket(BUCKET))


@pytest.mark.usefixtures("s3", "retry_clock")
def test_a_website_that_answers_every_request_is_not_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    page = reply(200, b"<!doctype html><p>Please log in", "text/html")
    with listening(lambda request: page) as server:
        bucket = through(server, monkeypatch)
        with pytest.raises(SpinError, match="S3_ENDPOINT"):
            list(bucket.objects("a/"))
        with pytest.raises(SpinError, match="S3_ENDPOINT"):
            bucket.begin_upload(KEY)


@pytest.mark.parametrize(
    "answer",
    [
        refusal(503, "SlowDown"),
        refusal(503, "SlowDownWrite"),  # MinIO's
        refusal(500, "InternalError"),
        refusal(429, "TooManyRequests"),
        refusal(400, "RequestTimeout"),
        reply(502, b"<html>Bad gateway", "text/html"),
        reply(503, "Störung".encode("latin-1"), "text/html"),
        reply(503, b"", "text/plain"),
        reply(503, b"no XML at all"),
        reply(200, b"cut", length=1000),
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
    ],
    ids=[
        "slow",
        "slow-minio",
        "internal",
        "429",
        "time-out",
        "502",
        "latin-1",
        "empty",
        "no-xml",
        "cut",
        "reset",
        "ssh",
    ],
)
@pytest.mark.parametrize("verb", ["GET", "PUT"])
@pytest.mark.usefixtures("retry_clock")
def test_temporary_errors_are_retried(
    bucket: Bucket, s3: S3Server, monkeypatch: pytest.MonkeyPatch, answer: bytes, verb: str
) -> None:
    bucket.put("troubled", b"before")
    with listening(times(2, verb, answer), s3.port) as server:
        troubled = through(server, monkeypatch)
        assert troubled.get("troubled") == b"before"
        troubled.put("troubled", b"after")
        assert server.count(verb) == 3
    assert bucket.get("troubled") == b"after"


@pytest.mark.parametrize("status", [500, 503, 429])
@pytest.mark.usefixtures("retry_clock")
def test_temporary_errors_of_head_are_retried(
    bucket: Bucket, s3: S3Server, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    bucket.put("troubled", b"x")
    with listening(times(2, "HEAD", reply(status)), s3.port) as server:
        assert through(server, monkeypatch).stat("troubled") == bucket.stat("troubled")


def test_an_interrupted_part_is_streamed_again_from_its_start(
    bucket: Bucket, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("troubled", bytes(range(256)))
    received = bytearray(300)
    cut = reply(206, b"\xff" * 7, "binary/octet-stream", length=100)
    with listening(times(1, "GET", cut), s3.port) as server:

        def sink(offset: int, block: bytes) -> None:
            received[offset : offset + len(block)] = block

        through(server, monkeypatch).get_part("troubled", 10, 100, sink)
        assert server.count("GET") == 2
    assert received[10:110] == bytes(range(10, 110))


@pytest.mark.usefixtures("s3", "retry_clock")
def test_an_error_after_the_deadline_names_the_object(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(lambda request: refusal(503, "SlowDown")) as server:
        message = refused(through(server, monkeypatch), StorageError)
        assert len(server.requests) > 1
    assert "SlowDown" in message
    assert "then run the same command" in message


@pytest.mark.usefixtures("s3", "retry_clock")
def test_a_silent_server_is_an_error_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setenv("S3_ENDPOINT", f"http://127.0.0.1:{mute.getsockname()[1]}")
        refused(Bucket(BUCKET, deadline_s=1.0, timeout_s=0.3), StorageError)


def test_a_server_that_returns_before_the_deadline_is_used(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = S3Server(tmp_path / "s3")
    monkeypatch.setenv("S3_ENDPOINT", server.endpoint)
    bucket = Bucket(BUCKET)
    bucket.put(KEY, b"before")
    server.kill()
    starting = threading.Timer(0.5, server.start)
    starting.start()
    try:
        assert bucket.get(KEY) == b"before"
    finally:
        starting.join()
        server.kill()
