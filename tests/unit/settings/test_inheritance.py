from __future__ import annotations

from spin_components.settings.inheritance import inherited


def test_a_record_without_newer_settings_is_taken_over_with_what_its_run_did() -> None:
    data = inherited({"data": {"train": "d"}}, source="run.json")["data"]
    assert data == {"train": "d", "split": "shuffle", "shard_by": "records"}
    assert inherited({"generation": {}}, source="run.json")["generation"] == {"block_size": 0}


def test_a_record_with_newer_settings_is_taken_over_as_it_is() -> None:
    recorded = {"data": {"train": "d", "split": "auto", "shard_by": "tokens"}}
    assert inherited(recorded, source="run.json") == recorded
