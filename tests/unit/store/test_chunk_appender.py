from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from spin_components.record.events import EventLog, EventTail, read_events
from spin_components.store import remote
from spin_components.store.bucket import Bucket
from spin_components.store.open import open_run
from support.loopback import listening, refusal, times
from support.s3_server import BUCKET, S3Server

EVENT = '{"time": 1.0, "kind": "x", "number": %d}'


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FLUSH_S", 0.05)


def wait_until_stored(run_uri: str, num_events: int) -> None:
    """Return once a number of events can be read; pytest's timeout ends a failing wait."""
    with open_run(run_uri) as run:
        tail, seen = EventTail(run), 0
        while seen < num_events:
            seen += len(tail.new())


def numbers(events: list[dict[str, int]]) -> list[int]:
    return [event["number"] for event in events]


def test_lines_are_stored_while_the_writer_continues(s3: S3Server) -> None:
    with open_run(f"s3://{BUCKET}/appended") as run:
        lines = run.appender("events/a.jsonl")
        tail = EventTail(run)
        for number in range(3):
            lines.write(EVENT % number)
            wait_until_stored(run.uri, number + 1)
            assert numbers(tail.new()) == [number]
            assert tail.new() == []
        skipping = EventTail(run, skip=True)
        lines.write(EVENT % 3)
        lines.close()
        assert numbers(tail.new()) == numbers(skipping.new()) == [3]
        assert run.list("events", "*") == ["events/a-00000.jsonl"]


def test_lines_come_in_order_across_chunks(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_CHUNK_BYTES", 150)
    with open_run(f"s3://{BUCKET}/chunked") as run:
        lines = run.appender("events/a.jsonl")
        written = [EVENT % number for number in range(30)]
        for line in written:
            lines.write(line)
        lines.close()
        keys = run.list("events", "*")
        # at least 39 bytes and a line's end, 40 in all: four lines make 160 bytes, and 30 lines eight chunks
        assert keys == [f"events/a-{number:05d}.jsonl" for number in range(8)]
        assert b"".join(run.read(key) or b"" for key in keys).decode().splitlines() == written
        assert numbers(read_events(run)) == list(range(30))


def test_closing_stores_all_lines(s3: S3Server) -> None:
    with open_run(f"s3://{BUCKET}/short") as run:
        for kind in ("first", "second"):
            log = EventLog(run, {"step": "validate", "iteration": 0})
            log.write(kind, text="two\nlines, ü")
            log.close()
        assert [(event["kind"], event["text"]) for event in read_events(run)] == [
            ("first", "two\nlines, ü"),
            ("second", "two\nlines, ü"),
        ]


def test_no_lines_create_no_object(s3: S3Server) -> None:
    with open_run(f"s3://{BUCKET}/silent") as run:
        run.appender("events/a.jsonl").close()
        EventLog(run, {"step": "x"}, enabled=False).close()
        assert run.sizes("") == {}


def test_unreachable_storage_is_one_warning_and_no_error(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote, "_EVENTS_DEADLINE_S", 0.2)
    server = S3Server(tmp_path / "s3")
    monkeypatch.setenv("S3_ENDPOINT", server.endpoint)
    server.kill()
    with open_run(f"s3://{BUCKET}/down") as run:
        lines = run.appender("events/a.jsonl")
        lines.write(EVENT % 0)
        while "events could not be stored" not in caplog.text:
            time.sleep(0.02)
        lines.write(EVENT % 1)
        lines.close()
    (record,) = (record for record in caplog.records if record.name == remote.__name__)
    assert record.levelname == "WARNING"
    assert f"events could not be stored: PUT s3://{BUCKET}/down/events/a-00000.jsonl" in record.getMessage()


def test_pending_lines_are_stored_when_storage_returns(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_CHUNK_BYTES", 100)
    with listening(times(3, "PUT", refusal(403, "AccessDenied")), s3.port) as server:
        monkeypatch.setenv("S3_ENDPOINT", server.endpoint)
        with open_run(f"s3://{BUCKET}/back") as run:
            lines = run.appender("events/a.jsonl")
            for number in range(10):
                lines.write(EVENT % number)
            wait_until_stored(run.uri, 10)
            lines.close()
            assert numbers(read_events(run)) == list(range(10))


def test_the_number_of_pending_chunks_is_limited(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_CHUNK_BYTES", 1)  # a chunk a line
    monkeypatch.setattr(remote, "_FLUSH_S", 1000.0)
    lines = remote.ChunkAppender(Bucket(BUCKET), "bounded/a.jsonl")
    for number in range(100):
        lines.write(json.dumps(number))
    lines.close()
    stored = list(Bucket(BUCKET).objects("bounded/"))
    # the sixteen newest, under their own numbers
    assert [info.key for info in stored] == [f"bounded/a-{number:05d}.jsonl" for number in range(84, 100)]
