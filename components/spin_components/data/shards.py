"""The Parquet files that travel between steps: token ids, never text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import parquet

from spin_components.errors import IntegrityError


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt with its human answer.

    Attributes:
        index: number of the record within the run.
        prompt_ids: token ids up to where an answer begins.
        actual_ids: the human answer's; its EOS is among them unless it was cut.
        actual_ended: whether it is.
    """

    index: int
    prompt_ids: list[int]
    actual_ids: list[int]
    actual_ended: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """The human's answer against the reference's; told from all others of a run by its origin and its index.

    Attributes:
        generated_ids: sampled token ids; the EOS is among them only where it was sampled.
        finish_reason: `stop` (EOS sampled), `stop_string`, or `length` (cut).
        origin: the iteration it was generated in.
        sampled_logprob: of the generated answer's tokens, nats, as the sampler's own model had it: good for a check of
            weights and template, never for the loss.
    """

    index: int
    prompt_ids: list[int]
    actual_ids: list[int]
    generated_ids: list[int]
    finish_reason: str
    origin: int = 0
    sampled_logprob: float = 0.0

    @property
    def key(self) -> tuple[int, int]:
        """Origin and index: one prompt has a pair of each iteration."""
        return self.origin, self.index

    @property
    def num_tokens(self) -> int:
        """Of both sequences."""
        return 2 * len(self.prompt_ids) + len(self.actual_ids) + len(self.generated_ids)

    def is_empty(self, eos_ids: Collection[int]) -> bool:
        """Whether the reference said nothing: no token, or none but EOS."""
        return all(token in eos_ids for token in self.generated_ids)

    @property
    def is_identical(self) -> bool:
        """Whether the reference said what the human did: the margin is 0 whatever the policy."""
        return self.generated_ids == self.actual_ids


@dataclass(frozen=True, slots=True)
class Score:
    """Log-probabilities of both answers of a pair under the reference, in nats, summed over answer tokens.

    Attributes:
        batch: number of the global batch, within the shard, that the pair was scored in and is trained in.
        origin: the pair's: where it is an earlier iteration, the pair was scored again, under the present reference.
        base_actual, base_generated: the same under the base model of the run, where the objective asks for it.
    """

    index: int
    ref_actual: float
    ref_generated: float
    batch: int
    origin: int
    base_actual: float | None = None
    base_generated: float | None = None

    @property
    def key(self) -> tuple[int, int]:
        """The pair's."""
        return self.origin, self.index


@dataclass(frozen=True, slots=True)
class AnswerLoss:
    """Negative log-likelihood of a held-out human answer, in nats, summed over its tokens."""

    index: int
    nll: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What a policy answered to a held-out prompt.

    Attributes:
        logprob: of the answer under that policy, in nats, summed over its tokens.
        logprob_of_reference_sample: under that policy too, of what its reference answered; NaN for the base model.
    """

    index: int
    generated_ids: list[int]
    finish_reason: str
    logprob: float
    logprob_of_reference_sample: float


@dataclass(frozen=True, slots=True)
class PairReward:
    """Rewards of both answers of a pair, beta * (log pi - log pi_ref), in the step that trained on it.

    Attributes:
        step: of the run, whose update the pair was part of.
        origin: the pair's.
    """

    index: int
    step: int
    reward_actual: float
    reward_generated: float
    origin: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge said of an answer.

    Attributes:
        reply: in full.
        score: from 1 to 10; None where the reply holds none.
    """

    index: int
    reply: str
    score: float | None = None


_IDS = pa.list_(pa.int32())
_COLUMNS = {
    "index": pa.int64(),
    "origin": pa.int32(),
    "prompt_ids": _IDS,
    "actual_ids": _IDS,
    "generated_ids": _IDS,
    "actual_ended": pa.bool_(),
    "finish_reason": pa.string(),
    "sampled_logprob": pa.float32(),
    "ref_actual": pa.float32(),
    "ref_generated": pa.float32(),
    "batch": pa.int32(),
    "base_actual": pa.float32(),
    "base_generated": pa.float32(),
    "step": pa.int64(),
    "reward_actual": pa.float32(),
    "reward_generated": pa.float32(),
    "nll": pa.float32(),
    "num_tokens": pa.int32(),
    "logprob": pa.float32(),
    "logprob_of_reference_sample": pa.float32(),
    "reply": pa.string(),
    "score": pa.float32(),
}

Row = TypeVar("Row", Prompt, Pair, Score, PairReward, AnswerLoss, Sample, Verdict)


def write_rows(path: Path, kind: type[Row], rows: Sequence[Row]) -> None:
    """Write rows of one kind; the same rows give the same bytes. A column that may be empty is left out where it is."""
    table = [asdict(row) for row in rows]
    needed = _needed_columns(kind)
    names = [field.name for field in fields(kind)]
    names = [name for name in names if name in needed or any(row[name] is not None for row in table)]
    schema = pa.schema([(name, _COLUMNS[name]) for name in names])
    parquet.write_table(pa.Table.from_pylist(table, schema=schema), path)


def _needed_columns(kind: type[Row]) -> set[str]:
    return {field.name for field in fields(kind) if field.default is not None}


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Read what `write_rows` wrote.

    Raises:
        IntegrityError: the file is not there or has other columns.
    """
    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise IntegrityError(f"{path} cannot be read as Parquet: {error}") from error
    needed, found = _needed_columns(kind), set(table.column_names)
    expected = [field.name for field in fields(kind) if field.name in needed | found]
    if table.column_names != expected:
        raise IntegrityError(f"{path} has the columns {table.column_names}, expected {expected}")
    return [kind(**row) for row in table.to_pylist()]
