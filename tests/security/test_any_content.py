"""Any TOML, any settings and any lines of events are read or refused; nothing else comes of them."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from spin_components.errors import ConfigError, SpinError, clean
from spin_components.record.events import read_events
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_pipeline.config import check_settings, load_settings
from spin_pipeline.runs.status import read_status
from spin_pipeline.watch.model import RunModel

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
SECTIONS = st.sampled_from(sorted(Settings.model_fields)) | st.text(max_size=8)
KEYS = st.sampled_from(
    sorted({key for field in Settings.model_fields.values() for key in field.annotation.model_fields})  # type: ignore[union-attr]
)
KINDS = (
    "start",
    "plan",
    "progress",
    "transfer",
    "metrics",
    "validation",
    "samples",
    "done",
    "published",
    "stop",
    "fail",
)
FIELDS = (
    *("step", "iteration", "epoch", "shard", "error", "message", "exit_code", "done", "total", "unit", "global_step"),
    *("consumed_samples", "loss", "facts", "samples", "max_epochs", "max_iterations", "shards", "name", "reason"),
)
EVENTS = st.fixed_dictionaries(
    {"kind": st.sampled_from(KINDS) | VALUES, "time": st.floats(0, 4e9) | VALUES},
    optional={"step": st.sampled_from(("prepare", "train-epoch", "evaluate")) | VALUES},
).flatmap(
    lambda event: st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6).map(lambda more: {**more, **event})
)


@settings(max_examples=60)
@given(st.dictionaries(SECTIONS, VALUES | st.dictionaries(KEYS, VALUES, max_size=3), max_size=3))
def test_any_tables_are_settings_or_refused(tables: dict[str, Any]) -> None:
    try:
        check_settings({"model": {"base": "m"}, "data": {"train": "d"}, **tables}, source="the test")
    except ConfigError as error:
        assert str(error) == clean(str(error))


@settings(max_examples=60)
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_file_is_a_configuration_or_refused(content: str | bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.toml"
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        try:
            load_settings(str(path))
        except ConfigError as error:
            assert "any.toml" in str(error)


@settings(max_examples=60)
@given(st.text(max_size=40))
def test_any_override_is_a_setting_or_refused(text: str) -> None:
    try:
        load_settings("tiny", [text, f"run.name={text}"])
    except ConfigError as error:
        assert str(error) == clean(str(error))


@settings(max_examples=60)
@given(st.lists(EVENTS, max_size=6), st.binary(max_size=30))
def test_any_events_are_read_or_skipped(events: list[dict[str, Any]], tail: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = LocalRun(Path(folder))
        run.write_json(layout.ATTEMPT, {"started": 0.0})
        lines = b"".join(json.dumps(event).encode() + b"\n" for event in events)
        run.write("events/1.jsonl", lines + tail + b"\n" + b"[" * 10_000 + b"\n")
        read = read_events(run)
        assert all(isinstance(event["kind"], str) and math.isfinite(event["time"]) for event in read)
        RunModel().apply(read)
        status = read_status(run.uri)
        assert status.exit_code in range(1, 256)


@given(
    st.text(max_size=80),
    st.text(st.characters(exclude_characters="@/:'\" ", exclude_categories=("C", "Z")), min_size=4),
)
def test_no_login_is_shown(text: str, key: str) -> None:
    shown = str(SpinError(f"{text} https://user:{key}@host/v1 s3://{key}:{key}@bucket {text}"))
    assert f"{key}@" not in shown.replace("***@", "")
    assert "https://***@host/v1 s3://***@bucket" in shown
