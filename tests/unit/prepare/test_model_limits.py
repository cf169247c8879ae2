from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spin_components.data.shards import Prompt
from spin_components.errors import ModelError
from spin_components.model.architecture import Architecture
from spin_components.model.folder import load_tokenizer
from spin_components.prepare.model_limits import check_limits
from spin_components.prepare.spool import RecordSpool
from spin_components.settings.run import ModelSettings
from support.small import small_settings

PROMPTS = [Prompt(0, [5, 6, 7], [8, 1], True), Prompt(1, [5, 9], [511, 1], True)]


@pytest.fixture
def spool(tmp_path: Path) -> RecordSpool:
    """The prompts, rendered."""
    spool = RecordSpool(tmp_path / "records", 0)
    spool.add(PROMPTS)
    spool.close()
    return spool


def checked(spool: RecordSpool, tiny_llama: Path, model: Architecture, *, max_new_tokens: int = 16) -> list[str]:
    settings = small_settings("/run", tiny_llama, "/data", generation={"max_new_tokens": max_new_tokens})
    warnings: list[str] = []
    check_limits(
        spool, np.arange(2), load_tokenizer(tiny_llama, ModelSettings(base="x")), model, settings, warnings.append
    )
    return warnings


def test_ids_within_the_embedding_pass(spool: RecordSpool, tiny_llama: Path) -> None:
    assert checked(spool, tiny_llama, Architecture(512, None)) == []


def test_an_id_without_a_row_is_named(spool: RecordSpool, tiny_llama: Path) -> None:
    with pytest.raises(ModelError, match=r"has the id 511, but the embedding has 511 rows.* in 1 of 2 records"):
        checked(spool, tiny_llama, Architecture(511, None))


def test_entries_of_the_tokenizer_that_nothing_uses_are_said(spool: RecordSpool, tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama, ModelSettings(base="x"))
    tokenizer.add_tokens(["<|unused|>"])
    warnings: list[str] = []
    settings = small_settings("/run", tiny_llama, "/data")
    check_limits(spool, np.arange(2), tokenizer, Architecture(512, None), settings, warnings.append)
    assert warnings == ["the tokenizer has ids up to 512, the embedding 512 rows; no record uses an id without a row"]


def test_the_longest_prompt_and_answer_must_have_positions(spool: RecordSpool, tiny_llama: Path) -> None:
    # the longer prompt has 3 tokens, an answer of the model at most 16: 19
    assert checked(spool, tiny_llama, Architecture(512, 19)) == []
    with pytest.raises(ModelError, match=r"18 learned positions.* have 19 tokens; set data\.max_length = 18"):
        checked(spool, tiny_llama, Architecture(512, 18))
