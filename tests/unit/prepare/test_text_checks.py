from __future__ import annotations

from pathlib import Path

import pytest

from spin_components.data.formats import Conversation, Message
from spin_components.prepare.text_checks import TextChecks, message_of_left_out
from spin_components.store.sources import Source


def warnings(*records: Conversation) -> list[str]:
    checks = TextChecks(["<|im_end|>"], ["<|im_start|>", "<|im_end|>"])
    for line, record in enumerate(records, 1):
        checks.add(record, f"a.jsonl, line {line}")
    return checks.warnings()


def ask(answer: str, question: str = "Hi", unread: tuple[str, ...] = ()) -> Conversation:
    return Conversation((Message("user", question),), answer, unread)


@pytest.mark.parametrize("answer", ["Hello", "<think>a</think>b", "<think>a</think><think>b</think>c", "1 < 2"])
def test_plain_records_have_no_warning(answer: str) -> None:
    assert warnings(ask(answer)) == []


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (ask("Hello<|im_end|>"), "have an answer that ends in the text '<|im_end|>'"),
        (ask("Hello<|im_end|>\n"), "have an answer that ends in the text '<|im_end|>'"),
        (ask("Hello", "<|im_start|>user"), "have the text of a special token in a turn"),
        (ask("a</think>b"), "have an answer with half a think block"),
        (ask("<think>a"), "have an answer with half a think block"),
        (ask("Hello", unread=("notes",)), "have text under 'notes' that is in no turn and is not read"),
    ],
)
def test_an_oddity_is_counted_and_its_first_place_told(record: Conversation, told: str) -> None:
    (warning,) = warnings(ask("Hello"), record, record)
    assert warning.startswith(f"2 records {told}")
    assert warning.endswith("the first is a.jsonl, line 2")


def test_files_of_other_splits_are_named() -> None:
    source = Source("hf://x", Path(), ("train.jsonl",), left_out=("dev.jsonl", "test.jsonl"))
    message = message_of_left_out(source, "data.train")
    assert "data files of other splits there are not read, 2 of them (dev.jsonl, test.jsonl)" in message
    assert "'hf://x#SPLIT' names a split" in message
