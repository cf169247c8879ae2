"""Renders records to token ids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from spin_components.data.fidelity import DIFFERENCES
from spin_components.data.records import RecordSet
from spin_components.data.rendering import Renderer, find_eos_ids
from spin_components.data.shards import Prompt
from spin_components.data.templates import ChatTemplate
from spin_components.data.thinking import Case, Thinking
from spin_components.errors import DataError
from spin_components.model.folder import check_model_folder, generation_eos
from spin_components.settings.settings import Settings


@dataclass(frozen=True, slots=True)
class RenderedSet:
    """Every record as token ids.

    Attributes:
        prompts: by the setting they came from (`train`, `validation`).
        eos_ids: token ids that end an answer.
        renderer: fingerprint of template and tokenizer.
        num_prompts_cut: prompts that lost their middle or beginning.
        num_answers_cut: human answers that lost their end.
        num_refused: records that the template refused.
        date: date and time that the template rendered; empty where it reads no clock.
        warnings: what the template makes of the records beyond rendering them.
    """

    prompts: dict[str, list[Prompt]]
    eos_ids: list[int]
    renderer: str
    num_prompts_cut: int
    num_answers_cut: int
    num_refused: int
    date: str
    warnings: list[str]

    @property
    def num_records(self) -> int:
        return sum(len(prompts) for prompts in self.prompts.values())

    def facts(self) -> dict[str, Any]:
        """Facts of the data manifest."""
        return {
            "eos_ids": self.eos_ids,
            "renderer": self.renderer,
            "num_prompts_cut": self.num_prompts_cut,
            "num_answers_cut": self.num_answers_cut,
            "num_unrenderable_records": self.num_refused,
            **({"chat_template_date": self.date} if self.date else {}),
        }


def render_records(
    records: dict[str, list[RecordSet]],
    tokenizer: Any,
    template: ChatTemplate,
    base: Path,
    settings: Settings,
    report: Callable[[int], None] = lambda done: None,
) -> RenderedSet:
    """Render every record with the model's chat template.

    Args:
        records: by the setting they came from.
        tokenizer: of the base model.
        template: to render with.
        base: its folder.
        settings: of the run.
        report: called with the number of records done.

    Raises:
        DataError: records the template or tokenizer refuses, unless `data.on_bad_record` is `skip`.
        ModelError: the template ends turns with no token that could be found.
    """
    data = settings.data
    config = check_model_folder(base, what="model.base", quantize=settings.lora.quantize)
    eos_ids = find_eos_ids(tokenizer, generation_eos(base, config), template)
    renderer = Renderer(
        tokenizer,
        eos_ids,
        max_length=data.max_length,
        max_prompt_length=data.max_prompt_length,
        long_prompts=data.long_prompts,
        template=template,
    )
    prompts: dict[str, list[Prompt]] = {}
    refused: list[str] = []
    notes: dict[str, list[str]] = defaultdict(list)
    cut_prompts = cut_answers = index = 0
    for name, sets in records.items():
        prompts[name] = []
        for source, record in [(each.source, record) for each in sets for record in each.records]:
            try:
                rendered = renderer.render(record.conversation)
            except ValueError as error:
                refused.append(f"{source}, line {record.line}: {error}")
                continue
            prompts[name].append(Prompt(index, rendered.prompt_ids, rendered.actual_ids, rendered.actual_ended))
            for note in (rendered.difference, rendered.reasoning):
                if note:
                    notes[note].append(f"{source}, line {record.line}")
            cut_prompts += bool(rendered.prompt_cut)
            cut_answers += not rendered.actual_ended
            index += 1
            report(index + len(refused))
    if refused and data.on_bad_record == "fail":
        shown = "\n".join(f"  {line}" for line in refused[:10])
        raise DataError(
            f"{len(refused)} records cannot be rendered; the first of them:\n{shown}\n"
            "Repair them, or set data.on_bad_record = 'skip' to leave them out."
        )
    date = template.clock.isoformat() if template.tells_time else ""
    warnings = _warnings(notes, index, renderer.thinking)
    fingerprint = renderer.fingerprint()
    return RenderedSet(prompts, eos_ids, fingerprint, cut_prompts, cut_answers, len(refused), date, warnings)


def _warnings(notes: Mapping[str, list[str]], num_records: int, thinking: Thinking | None) -> list[str]:
    """One sentence for each kind of note, with the number of records and the place of the first."""
    lines = []
    for note, places in notes.items():
        count = f"{len(places)} of {num_records}"
        if note in DIFFERENCES:
            lines.append(f"{count} prompts (the first: {places[0]}): {DIFFERENCES[note]}")
        elif thinking:
            lesson = thinking.lesson(cast(Case, note))
            lines.append(f"{count} human answers (the first: {places[0]}) {lesson}")
    return lines
