"""Answers that `validate` sampled, decoded to text for a judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spin_components.data.shards import Prompt, Sample, read_rows
from spin_components.evaluate.judge import Question
from spin_components.model.folder import load_tokenizer
from spin_components.model.stored import fetch_model
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.digests import FileDigest
from spin_components.store.manifests import read_manifest


@dataclass(frozen=True, slots=True)
class Sampled:
    """Where the answers of a validation are stored.

    Attributes:
        made_by: key of the validation's manifest.
        key: of the file of answers.
        file: its digest; None if the model was not sampled because its loss is not finite.
        data: digest of the file of held-out prompts.
    """

    made_by: str
    key: str
    file: FileDigest | None
    data: FileDigest


def sampled(run: RunStore, iteration: int, epoch: int) -> Sampled:
    """The answers that the validation of an epoch sampled; iteration `BASE` is the base model."""
    made_by, key = layout.validation(iteration, epoch), layout.validation_samples(iteration, epoch)
    data = read_manifest(run, layout.DATA_MANIFEST).outputs[layout.VALIDATION]
    return Sampled(made_by, key, read_manifest(run, made_by).outputs.get(key), data)


def questions(run: RunStore, settings: Settings, answers: Sampled, limit: int) -> list[Question]:
    """Decode prompts, sampled answers and human answers.

    Args:
        run: the run.
        settings: of the run.
        answers: to read; with a file.
        limit: how many of the first; 0 for all.

    Raises:
        IntegrityError: a file is missing or altered.
    """
    assert answers.file is not None
    samples = _rows(run, {answers.key: answers.file}, answers.key, Sample, made_by=answers.made_by)
    prompts = _rows(run, {layout.VALIDATION: answers.data}, layout.VALIDATION, Prompt, made_by=layout.DATA_MANIFEST)
    by_index = {prompt.index: prompt for prompt in prompts}
    base = str(run.read_json(layout.RUN)["base_model"]["uri"])  # every policy has its tokenizer
    tokenizer = load_tokenizer(fetch_model(run, base, what="the base model"), settings.model)
    eos_ids = read_manifest(run, layout.DATA_MANIFEST).facts["eos_ids"]

    def text(ids: Sequence[int]) -> str:
        answer = ids[:-1] if ids and ids[-1] in eos_ids else ids  # a token that ends answers need not be special
        return str(tokenizer.decode(answer, skip_special_tokens=True))

    return [
        Question(
            sample.index,
            tokenizer.decode(by_index[sample.index].prompt_ids, skip_special_tokens=False),
            text(sample.generated_ids),
            text(by_index[sample.index].actual_ids),
        )
        for sample in (samples[:limit] if limit else samples)
    ]


def _rows(run: RunStore, files: dict[str, FileDigest], key: str, kind: Any, *, made_by: str) -> list[Any]:
    rows: list[Any] = read_rows(run.fetch(files, what="what is judged", made_by=made_by) / key, kind)
    return rows
