"""What a validated model answered to held-out prompts, as text for a judge."""

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
class Sampled:
    """Answers that a validation kept.

    Attributes:
        made_by: key of its manifest.
        key: of the file.
        file: what it must be; None where the model was not sampled, because its loss is not finite.
        data: the held-out prompts' file.
    """

    made_by: str
    key: str
    file: FileDigest | None
    data: FileDigest


def sampled(run: RunStore, place: tuple[int, int]) -> Sampled:
    """The answers of the model that was validated in an iteration and epoch."""
    made_by, key = layout.validation(*place), layout.validation_samples(*place)
    data = read_manifest(run, layout.DATA_MANIFEST).outputs[layout.VALIDATION]
    return Sampled(made_by, key, read_manifest(run, made_by).outputs.get(key), data)


def questions(run: RunStore, settings: Settings, found: Sampled, limit: int) -> list[Question]:
    """The first answers with their prompts and what the person answered, decoded.

    Args:
        run: the run.
        settings: of the run.
        found: what to read; its file is there.
        limit: how many; 0 for all.

    Raises:
        IntegrityError: a file is missing or altered.
    """
    assert found.file is not None
    samples = _rows(run, {found.key: found.file}, found.key, Sample, made_by=found.made_by)
    prompts = _rows(run, {layout.VALIDATION: found.data}, layout.VALIDATION, Prompt, made_by=layout.DATA_MANIFEST)
    by_index = {prompt.index: prompt for prompt in prompts}
    base = str(run.read_json(layout.RUN)["base_model"]["uri"])  # whose tokenizer every policy has
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
    rows: list[Any] = read_rows(run.fetch(files, what="what is judged", made_by=made_by) / key, kind)
    return rows
