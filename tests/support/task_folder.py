"""A folder of custom task files: a multiple-choice task and a generation task."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CHOICE: dict[str, Any] = {
    "task": "my_choice",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/choice.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{gold}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
GENERATE: dict[str, Any] = {
    "task": "my_text",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "text.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{target}}",
    "generation_kwargs": {"until": ["\n\n\n"], "max_gen_toks": 4, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def write_tasks(
    folder: Path, choices: list[dict[str, Any]], texts: list[dict[str, Any]], **more: Mapping[str, Any]
) -> Path:
    """Write both tasks; the data of the first is in a subfolder, that of the other in the root.

    Args:
        folder: to be created.
        choices: rows with `question`, `choices` and `gold`, the index of the right choice.
        texts: rows with `question` and `target`.
        more: other task files, by name.
    """
    (folder / "data").mkdir(parents=True)
    (folder / "text").mkdir()
    for path, rows in ((folder / "data/choice.jsonl", choices), (folder / "text.jsonl", texts)):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = {"my_choice.yaml": CHOICE, "text/my_text.yaml": GENERATE, **more}
    for name, task in files.items():
        (folder / name).write_text(yaml.safe_dump(dict(task)), encoding="utf-8")
    return folder
