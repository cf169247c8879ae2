"""Rows of the Parquet files that steps exchange, which hold token ids and no text, and their reading and writing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import parquet

from spin_components.errors import IntegrityError


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt with its human answer.

    Attributes:
        index: number of the record within the run.
        prompt_ids: token ids up to where the answer begins.
        actual_ids: token ids of the human answer, including its EOS unless the answer was cut.
        actual_ended: whether the EOS is included.
    """

    index: int
    prompt_ids: list[int]
    actual_ids: list[int]
    actual_ended: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """A human answer and the reference's answer to the same prompt; origin and index identify it within a run.

    Attributes:
        generated_ids: sampled token ids, including the EOS only if it was sampled.
        finish_reason: `stop` (EOS sampled), `stop_string`, or `length` (cut).
        origin: iteration that generated it.
        sampled_logprob: log-probability of the generated answer as reported by the sampling engine, in nats, summed
            over its tokens; used to check weights and template, not in the loss.
        proto_ids: the answer that iteration 0 generated to the same prompt, where the objective needs it; see
            `data.triplets`. Not stored with the generations.
    """

    index: int
    prompt_ids: list[int]
    actual_ids: list[int]
    generated_ids: list[int]
    finish_reason: str
    origin: int = 0
    sampled_logprob: float = 0.0
    proto_ids: list[int] | None = None

    @property
    def key(self) -> tuple[int, int]:
        """Origin and index: a prompt has one pair in each iteration."""
        return self.origin, self.index

    @property
    def answers(self) -> tuple[list[int], ...]:
        """Token ids of the human answer, the generated one and, if there is one, the proto answer."""
        both = self.actual_ids, self.generated_ids
        return both if self.proto_ids is None else (*both, self.proto_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens of a sequence for each answer, the prompt counted in all of them."""
        return sum(len(self.prompt_ids) + len(answer) for answer in self.answers)

    def is_empty(self, eos_ids: Collection[int]) -> bool:
        """Whether the generated answer has no tokens but EOS."""
        return all(token in eos_ids for token in self.generated_ids)

    @property
    def is_identical(self) -> bool:
        """Whether both answers are the same, so that the margin is 0 for any policy."""
        return self.generated_ids == self.actual_ids


@dataclass(frozen=True, slots=True)
class Score:
    """Log-probabilities of both answers of a pair under the reference, in nats, summed over answer tokens.

    Attributes:
        batch: number, within the shard, of the global batch that the pair is scored and trained in.
        origin: that of the pair; a pair of an earlier iteration is scored again under the present reference.
        base_actual, base_generated: log-probabilities under the base model of the run, where the objective needs them.
        ref_proto: that of the proto answer, where the objective needs it; NaN for a pair without one.
    """

    index: int
    ref_actual: float
    ref_generated: float
    batch: int
    origin: int
    base_actual: float | None = None
    base_generated: float | None = None
    ref_proto: float | None = None

    @property
    def key(self) -> tuple[int, int]:
        """Key of the pair, see `Pair.key`."""
        return self.origin, self.index


@dataclass(frozen=True, slots=True)
class AnswerLoss:
    """Negative log-likelihood of a held-out human answer, in nats, summed over its tokens."""

    index: int
    nll: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A policy's sampled answer to a held-out prompt.

    Attributes:
        logprob: log-probability of the answer under the policy, in nats, summed over its tokens.
        logprob_of_reference_sample: the same of the reference's answer, under the policy; NaN for the base model.
    """

    index: int
    generated_ids: list[int]
    finish_reason: str
    logprob: float
    logprob_of_reference_sample: float


SAMPLED, GREEDY = "sampled", "greedy"
"""Ways to choose the tokens of an answer to a held-out prompt: with the run's sampling settings, or the likeliest."""


@dataclass(frozen=True, slots=True)
class AnswerMeasures:
    """Measures of a policy's answer to a held-out prompt, against the human's.

    Attributes:
        decoding: `SAMPLED` or `GREEDY`.
        num_tokens: of the answer.
        actual_tokens: of the human's.
        ended: whether the answer ended by itself, not at a limit.
        repetition: share of repeated 4-grams, see `algorithm.answer_stats.repetition_rate`.
        chrf: chrF against the human's answer, from 0 to 100.
        match: whether it is the human's answer but for case and white space.
    """

    index: int
    decoding: str
    generated_ids: list[int]
    num_tokens: int
    actual_tokens: int
    ended: bool
    repetition: float
    chrf: float
    match: bool


@dataclass(frozen=True, slots=True)
class PairReward:
    """Rewards of both answers of a pair, beta * (log pi - log pi_ref), at the training step that used it.

    Attributes:
        step: optimizer step, counted over the run.
        origin: that of the pair.
    """

    index: int
    step: int
    reward_actual: float
    reward_generated: float
    origin: int


@dataclass(frozen=True, slots=True)
class Judgment:
    """A judge model's rating of an answer.

    Attributes:
        reply: full text of the judge's reply.
        score: from 1 to 10; None where the reply has none.
    """

    index: int
    reply: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class DocumentValue:
    """A metric of one document of an evaluation task.

    Attributes:
        metric: as the evaluation's manifest names it.
        index: number of the document in the task.
    """

    task: str
    metric: str
    index: int
    value: float


_IDS = pa.list_(pa.int32())
COLUMNS = {
    "index": pa.int64(),
    "origin": pa.int32(),
    "prompt_ids": _IDS,
    "actual_ids": _IDS,
    "generated_ids": _IDS,
    "proto_ids": _IDS,
    "actual_ended": pa.bool_(),
    "finish_reason": pa.string(),
    "sampled_logprob": pa.float32(),
    "ref_actual": pa.float32(),
    "ref_generated": pa.float32(),
    "batch": pa.int32(),
    "base_actual": pa.float32(),
    "base_generated": pa.float32(),
    "ref_proto": pa.float32(),
    "step": pa.int64(),
    "reward_actual": pa.float32(),
    "reward_generated": pa.float32(),
    "nll": pa.float32(),
    "num_tokens": pa.int32(),
    "logprob": pa.float32(),
    "logprob_of_reference_sample": pa.float32(),
    "decoding": pa.string(),
    "actual_tokens": pa.int32(),
    "ended": pa.bool_(),
    "repetition": pa.float32(),
    "chrf": pa.float32(),
    "match": pa.bool_(),
    "reply": pa.string(),
    "score": pa.float32(),
    "task": pa.string(),
    "metric": pa.string(),
    "value": pa.float64(),
}

PROMPT_SCHEMA = pa.schema([(field.name, COLUMNS[field.name]) for field in fields(Prompt)])
"""The columns of a file of prompts."""

PAIR_SCHEMA = pa.schema([(field.name, COLUMNS[field.name]) for field in fields(Pair)])
"""All columns of pairs, optional ones included."""

Row = TypeVar("Row", Prompt, Pair, Score, PairReward, AnswerLoss, Sample, AnswerMeasures, Judgment, DocumentValue)


def write_rows(path: Path, kind: type[Row], rows: Sequence[Row]) -> None:
    """Write rows of one kind; equal rows give equal bytes. An optional column whose values are all None is left out."""
    table = [asdict(row) for row in rows]
    needed = needed_columns(kind)
    names = [field.name for field in fields(kind)]
    names = [name for name in names if name in needed or any(row[name] is not None for row in table)]
    schema = pa.schema([(name, COLUMNS[name]) for name in names])
    parquet.write_table(pa.Table.from_pylist(table, schema=schema), path)


def needed_columns(kind: type[Any]) -> set[str]:
    """Names of the columns that every file of a kind of rows has."""
    return {field.name for field in fields(kind) if field.default is not None}


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Read a file that `write_rows` wrote.

    Raises:
        IntegrityError: the file cannot be read or has other columns.
    """
    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise IntegrityError(f"{path} cannot be read as Parquet: {error}") from error
    check_columns(path, table.column_names, kind)
    return [kind(**row) for row in table.to_pylist()]


def check_columns(path: Path, names: list[str], kind: type[Any]) -> None:
    """Refuse a file that holds another kind of rows.

    Raises:
        IntegrityError: its columns are not those of the kind.
    """
    needed = needed_columns(kind)
    expected = [field.name for field in fields(kind) if field.name in needed.union(names)]
    if names != expected:
        raise IntegrityError(f"{path} has the columns {names}, expected {expected}")
