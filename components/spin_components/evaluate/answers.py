"""Sampled answers of a validated model to held-out prompts, decoded for the judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spin_components.data.shards import Prompt, Sample, read_rows
from spin_components.evaluate.judge import Question
from spin_components.settings import Settings
from spin_components.store import layout
from spin_components.store.digests import FileDigest
from spin_components.store.manifests import read_manifest
from spin_components.store.models import fetch_model
from spin_components.store.run import RunStore
from spin_components.tokenizer import load_tokenizer


@dataclass(frozen=True, slots=True)
class SampledAnswers:
    """Stored answers that a validation sampled.

    Attributes:
        made_by: key of the validation's manifest.
        key: key of the file with the answers.
        file: digest of that file; None if the model was not sampled because its loss is not finite.
        data: digest of the file with the held-out prompts.
    """

    made_by: str
    key: str
    file: FileDigest | None
    data: FileDigest


def sampled(run: RunStore, epoch: tuple[int, int]) -> SampledAnswers:
    """Find the answers of the model that was validated in an iteration and epoch."""
    made_by, key = layout.validation(*epoch), layout.validation_samples(*epoch)
    data = read_manifest(run, layout.DATA_MANIFEST).outputs[layout.VALIDATION]
    return SampledAnswers(made_by, key, read_manifest(run, made_by).outputs.get(key), data)


def questions(run: RunStore, settings: Settings, answers: SampledAnswers, limit: int) -> list[Question]:
    """Read and decode the first sampled answers with their prompts and human answers.

    Args:
        run: the run.
        settings: settings of the run.
        answers: answers to read; `file` must not be None.
        limit: maximum number of answers; 0 for all.

    Raises:
        IntegrityError: a file is missing or altered.
    """
    assert answers.file is not None
    samples = _rows(run, {answers.key: answers.file}, answers.key, Sample, made_by=answers.made_by)
    prompts = _rows(run, {layout.VALIDATION: answers.data}, layout.VALIDATION, Prompt, made_by=layout.DATA_MANIFEST)
    by_index = {prompt.index: prompt for prompt in prompts}
    base = str(run.read_json(layout.RUN)["base_model"]["uri"])  # all policies have its tokenizer
    tokenizer = load_tokenizer(fetch_model(run, base, what="the base model"), settings.model)
    return [
        Question(
            sample.index,
            tokenizer.decode(by_index[sample.index].prompt_ids, skip_special_tokens=False),
            tokenizer.decode(sample.generated_ids, skip_special_tokens=True),
            tokenizer.decode(by_index[sample.index].actual_ids, skip_special_tokens=True),
        )
        for sample in (samples[:limit] if limit else samples)
    ]


def _rows(run: RunStore, files: dict[str, FileDigest], key: str, kind: Any, *, made_by: str) -> list[Any]:
    rows: list[Any] = read_rows(run.fetch(files, what="the sampled answers", made_by=made_by) / key, kind)
    return rows
