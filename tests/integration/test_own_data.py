"""Whole iterations on a user's own data, in every supported format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from transformers import AutoTokenizer

from spin_components.data.builtin import docstrings
from spin_components.data.shards import Prompt, read_rows
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from support.playing import begin, play, val_losses

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


def test_records_of_several_forms_keep_context_turns_and_the_head_of_a_long_prompt(
    make_settings: Callable[..., Settings], question_file: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    question = {"role": "user", "content": "What is a tide for?"}
    answer = {"role": "assistant", "content": "It cleans the beach."}
    turns = [{"role": "user", "content": "My name is Ada."}, {"role": "assistant", "content": "Good day, Ada."}]
    sailor = {"role": "system", "content": "You speak like a sailor."}
    paste = {"role": "user", "content": f"What is a tide for? {'lorem ipsum dolor ' * 200}Thank you."}
    records = [
        {"instruction": question["content"], "context": "The moon pulls.", "response": answer["content"]},
        {"prompt": question["content"], "chosen": [question, answer], "rejected": [question, turns[1]]},
        {"messages": [*turns, question, answer]},
        {"messages": [sailor, paste, answer]},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    settings = make_settings(data={"train": str(path), "validation": str(question_file), "max_train_records": 0})
    begin(settings)
    run = LocalRun(Path(settings.run.uri))
    rows = read_rows(run.path(layout.train_shard(0)), Prompt)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    asked = f"<|im_start|>user\n{question['content']}<|im_end|>\n<|im_start|>assistant\n"
    dolly, dpo, dialogue, long = (tokenizer.decode(row.prompt_ids) for row in rows)
    assert dolly == asked.replace("tide for?", "tide for?\n\nThe moon pulls.")
    assert dpo == asked
    assert dialogue == (
        "<|im_start|>user\nMy name is Ada.<|im_end|>\n<|im_start|>assistant\nGood day, Ada.<|im_end|>\n" + asked
    )
    assert long.startswith(
        "<|im_start|>system\nYou speak like a sailor.<|im_end|>\n<|im_start|>user\nWhat is a tide for? lorem ipsum"
    )
    assert long.endswith("dolor Thank you.<|im_end|>\n<|im_start|>assistant\n")
    assert len(rows[3].prompt_ids) == settings.data.max_prompt_length
    assert {tokenizer.decode(row.actual_ids) for row in rows} == {f"{answer['content']}<|im_end|>"}
    assert run.read_json(layout.DATA_MANIFEST)["facts"]["num_prompts_cut"] >= 1
