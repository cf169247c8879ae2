"""Whole iterations on a user's own data, in every supported format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from spin_components.data.builtin import docstrings
from spin_components.data.shards import Prompt, read_rows
from spin_components.settings.settings import Settings
from spin_components.store import layout
from support.playing import play, val_losses

PAIRS = list(docstrings(limit=24))
FORMS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "messages": lambda q, a: {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]},
    "prompt and response": lambda q, a: {"prompt": q, "response": a},
    "prompt and completion": lambda q, a: {"prompt": q, "completion": a},
    "instruction and output": lambda q, a: {"instruction": q, "input": "", "output": a},
    "NeMo's SFT chat": lambda q, a: {
        "system": "",
        "mask": "User",
        "conversations": [{"from": "User", "value": q}, {"from": "Assistant", "value": a}],
    },
    "the authors' real and generated": lambda q, a: {
        "real": [{"role": "user", "content": q}, {"role": "assistant", "content": a}],
        "generated": [{"role": "user", "content": q}, {"role": "assistant", "content": ""}],
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_run(form: str, make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(FORMS[form](*pair)) + "\n" for pair in PAIRS), encoding="utf-8")
    run = play(make_settings(data={"train": str(path)}))
    base, trained = val_losses(run)
    assert trained < base
    plain = tmp_path / "plain.jsonl"
    plain.write_text("".join(json.dumps({"prompt": q, "response": a}) + "\n" for q, a in PAIRS), encoding="utf-8")
    reference = play(make_settings(run={"uri": str(tmp_path / "plain")}, data={"train": str(plain)}))
    assert val_losses(run) == val_losses(reference)


def test_parquet_and_a_validation_file_of_its_own(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    train, validation = tmp_path / "train.parquet", tmp_path / "validation.jsonl"
    parquet.write_table(pa.Table.from_pylist([{"prompt": q, "response": a} for q, a in PAIRS[:16]]), train)
    validation.write_text("".join(json.dumps({"prompt": q, "response": a}) + "\n" for q, a in PAIRS[16:]), "utf-8")
    run = play(make_settings(data={"train": str(train), "validation": validation.as_uri()}))
    assert len(read_rows(run.path(layout.VALIDATION), Prompt)) == 8
    assert len(read_rows(run.path(layout.train_shard(0)), Prompt)) == 16
