"""Renders records to token ids, in batches that the tokenizer encodes while the next ones are written as text."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias, cast

from spin_components.data.fidelity import DIFFERENCES
from spin_components.data.records import Record, RecordStream
from spin_components.data.rendered import Rendered, Text
from spin_components.data.rendering import Renderer
from spin_components.data.shards import Prompt
from spin_components.data.templates import ChatTemplate
from spin_components.data.thinking import Case, Thinking
from spin_components.data.turn_ends import find_eos_ids
from spin_components.errors import DataError
from spin_components.model.folder import check_model_folder, generation_eos
from spin_components.prepare.spool import RecordSpool
from spin_components.prepare.text_checks import TextChecks
from spin_components.settings.settings import Settings

_BATCH_RECORDS = 512
_BATCH_CHARACTERS = 2**19
"""A batch ends at one of these: some 20 MB while it is encoded."""
_BATCHES_AHEAD = 2
_NUM_LISTED = 10

_Written: TypeAlias = tuple[
    str, str, Text | ValueError
]  # the setting that names the data, the record's place, its text
_Encoded: TypeAlias = tuple[str, str, Rendered | ValueError]
_Read: TypeAlias = dict[str, Any] | None  # what had been read with the last record of a batch; None at the end


_COUNTS = ("num_prompts_cut", "num_answers_cut", "num_refused")


@dataclass
class RenderedSet:
    """What rendering made of the records, besides their rows.

    Attributes:
        eos_ids: token ids that end an answer.
        numbers: rendered records by the setting that names their data (`train`, `validation`).
        renderer: fingerprint of template and tokenizer.
        num_prompts_cut: prompts that lost their middle or beginning.
        num_answers_cut: human answers that lost their end.
        num_refused: records that the template refused.
        num_bad: records that could not be parsed.
        date: date and time that the template rendered; empty where it reads no clock.
        warnings: what the template makes of the records beyond rendering them.
        text_warnings: oddities in the records' text.
    """

    eos_ids: list[int]
    numbers: Counter[str] = field(default_factory=Counter)
    renderer: str = ""
    num_prompts_cut: int = 0
    num_answers_cut: int = 0
    num_refused: int = 0
    num_bad: int = 0
    date: str = ""
    warnings: list[str] = field(default_factory=list)
    text_warnings: list[str] = field(default_factory=list)

    def counted(self) -> dict[str, Any]:
        """Return the counts of records so far, as JSON, for `go_on`."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        return {**counts, "numbers": dict(self.numbers)}

    def go_on(self, counted: dict[str, Any]) -> None:
        """Begin with the counts of other records."""
        for name in _COUNTS:
            setattr(self, name, counted[name])
        self.numbers = Counter(counted["numbers"])

    @property
    def num_records(self) -> int:
        """Number of rendered records."""
        return self.numbers.total()

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
    streams: Mapping[str, Sequence[RecordStream]],
    tokenizer: Any,
    template: ChatTemplate,
    base: Path,
    settings: Settings,
    spool: RecordSpool,
    report: Callable[[int], None] = lambda done: None,
    state: dict[str, Any] | None = None,
) -> RenderedSet:
    """Read every record and render it with the model's chat template.

    Args:
        streams: the records, by the setting that names their data.
        tokenizer: of the base model.
        template: to render with.
        base: its folder.
        settings: of the run.
        spool: takes the rows.
        report: called with the number of records done, good and bad.
        state: what `spool.restore` returned, where it begins with the records of an interrupted attempt.

    Raises:
        DataError: records that cannot be read, or that the template or tokenizer refuses, unless `data.on_bad_record`
            is `skip`.
        ModelError: the template ends turns with no token that could be found.
    """
    data = settings.data
    config = check_model_folder(base, what="model.base", quantize=settings.lora.quantize)
    eos_ids = find_eos_ids(tokenizer, generation_eos(base, config), template)
    if state:
        template.clock = datetime.fromisoformat(state["clock"])
    renderer = Renderer(
        tokenizer,
        eos_ids,
        max_length=data.max_length,
        max_prompt_length=data.max_prompt_length,
        long_prompts=data.long_prompts,
        template=template,
    )
    checks = TextChecks(tokenizer.convert_ids_to_tokens(eos_ids), tokenizer.all_special_tokens)
    rendered, notes = RenderedSet(eos_ids), _Notes()
    reader = _Reader(streams, checks)
    if state:
        reader.go_on(state["read"])
        rendered.go_on(state["rendered"])
        notes = _Notes(state["refused"], Counter(state["notes"]), state["first"])
        template.tells_time |= state["tells_time"]
    written = _written(reader, renderer)
    for batch, read in _encoded(renderer, _batches(written, reader)):
        spool.add(_rows(batch, rendered, notes))
        rendered.num_bad = sum(stream.num_bad for stream in reader.streams)
        report(rendered.num_records + rendered.num_refused + rendered.num_bad)
        if read is not None and spool.is_part:
            spool.end_part(
                {
                    "done": rendered.num_records + rendered.num_refused + rendered.num_bad,
                    "read": read,
                    "rendered": rendered.counted(),
                    "refused": notes.refused,
                    "notes": dict(notes.numbers),
                    "first": notes.first,
                    "clock": template.clock.isoformat(),
                    "tells_time": template.tells_time,
                }
            )
    if rendered.num_refused and data.on_bad_record == "fail":
        shown = "\n".join(f"  {line}" for line in notes.refused)
        raise DataError(
            f"{rendered.num_refused} records cannot be rendered; the first of them:\n{shown}\n"
            "Repair them, or set data.on_bad_record = 'skip' to leave them out."
        )
    rendered.date = template.clock.isoformat() if template.tells_time else ""
    rendered.warnings = notes.warnings(rendered.num_records, renderer.thinking)
    rendered.text_warnings = checks.warnings()
    rendered.renderer = renderer.fingerprint()
    return rendered


class _Reader:
    """The records of all streams, one after another, and how far they have been read.

    Attributes:
        streams: in order, whatever they are for.
    """

    def __init__(self, streams: Mapping[str, Sequence[RecordStream]], checks: TextChecks) -> None:
        self._names = [name for name, each in streams.items() for _ in each]
        self.streams = [stream for each in streams.values() for stream in each]
        self._checks = checks
        self._current = 0

    def __iter__(self) -> Iterator[tuple[str, RecordStream, Record]]:
        for number in range(self._current, len(self.streams)):
            self._current, stream = number, self.streams[number]
            for record in stream:
                self._checks.add(record.conversation, f"{stream.source}, {stream.unit} {record.line}")
                yield self._names[number], stream, record

    def read_so_far(self) -> dict[str, Any]:
        """Return what has been read up to the last record, as JSON."""
        read = [stream.read_so_far() for stream in self.streams[: self._current + 1]]
        return {"streams": read, "checks": self._checks.counted()}

    def go_on(self, read: dict[str, Any]) -> None:
        """Begin after what was read before."""
        for stream, of_stream in zip(self.streams, read["streams"], strict=False):
            stream.go_on(of_stream)
        self._current = len(read["streams"]) - 1
        self._checks.go_on(read["checks"])


def _written(reader: _Reader, renderer: Renderer) -> Iterator[_Written]:
    """Every record as text, or why it has none."""
    for name, stream, record in reader:
        place = f"{stream.source}, line {record.line}"
        try:
            yield name, place, renderer.write(record.conversation)
        except ValueError as error:
            yield name, place, error


def _batches(written: Iterator[_Written], reader: _Reader) -> Iterator[tuple[list[_Written], _Read]]:
    batch: list[_Written] = []
    num_characters = 0
    for each in written:
        batch.append(each)
        num_characters += len(each[2].prompt) + len(each[2].answer) if isinstance(each[2], Text) else 0
        if len(batch) == _BATCH_RECORDS or num_characters >= _BATCH_CHARACTERS:
            yield batch, reader.read_so_far()
            batch, num_characters = [], 0
    if batch:
        yield batch, None


def _encoded(
    renderer: Renderer, batches: Iterator[tuple[list[_Written], _Read]]
) -> Iterator[tuple[list[_Encoded], _Read]]:
    """Batches as token ids, in order; a thread encodes, while templates are rendered in this one.

    A template's time is limited by a signal, which only the main thread receives.
    """

    def encode(batch: list[_Written]) -> list[_Encoded]:
        ids = iter(renderer.encode([text for _, _, text in batch if isinstance(text, Text)]))
        return [(name, place, next(ids) if isinstance(text, Text) else text) for name, place, text in batch]

    with ThreadPoolExecutor(1, thread_name_prefix="encode") as pool:
        ahead: deque[tuple[Future[list[_Encoded]], _Read]] = deque()
        for batch, read in batches:
            ahead.append((pool.submit(encode, batch), read))
            if len(ahead) > _BATCHES_AHEAD:
                encoded, read_before = ahead.popleft()
                yield encoded.result(), read_before
        while ahead:
            encoded, read_before = ahead.popleft()
            yield encoded.result(), read_before


def _rows(batch: Sequence[_Encoded], rendered: RenderedSet, notes: _Notes) -> list[Prompt]:
    """The rows of a batch; the others, and what there is to say of all, are counted."""
    rows = []
    for name, place, each in batch:
        if isinstance(each, ValueError):
            rendered.num_refused += 1
            if rendered.num_refused <= _NUM_LISTED:
                notes.refused.append(f"{place}: {each}")
            continue
        rows.append(Prompt(rendered.num_records, each.prompt_ids, each.actual_ids, each.actual_ended))
        for note in (each.difference, each.reasoning):
            if note:
                notes.add(note, place)
        rendered.num_prompts_cut += bool(each.prompt_cut)
        rendered.num_answers_cut += not each.actual_ended
        rendered.numbers[name] += 1
    return rows


@dataclass
class _Notes:
    """What was said of records: the first that were refused, and of each kind of note the number and the first."""

    refused: list[str] = field(default_factory=list)
    numbers: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, note: str, place: str) -> None:
        self.numbers[note] += 1
        self.first.setdefault(note, place)

    def warnings(self, num_records: int, thinking: Thinking | None) -> list[str]:
        """One sentence for each kind of note, with the number of records and the place of the first."""
        lines = []
        for note, number in self.numbers.items():
            count, first = f"{number} of {num_records}", self.first[note]
            if note in DIFFERENCES:
                lines.append(f"{count} prompts (the first: {first}): {DIFFERENCES[note]}")
            elif thinking:
                lines.append(f"{count} human answers (the first: {first}) {thinking.lesson(cast(Case, note))}")
        return lines
