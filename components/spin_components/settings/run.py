"""The settings that are part of what a run is: `[run]`, `[model]`, `[data]`, `[spin]`, `[validation]`."""

from __future__ import annotations

import json
from datetime import datetime
from math import inf
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from spin_components.settings.section import (
    CountOrFraction,
    PositiveFloat,
    Section,
    check_fraction,
    check_per_iteration,
    check_some,
    per_iteration,
)


class PoolSettings(Section):
    """Pairs of earlier iterations, and filters on pairs."""

    history: int = Field(
        1,
        ge=0,
        le=32,
        description="Number of earlier iterations whose pairs are also trained on, scored again under the current "
        "reference; 1: the paper, 0: NeMo. A run started by --fork-from begins without earlier pairs.",
    )
    history_ratio: float | Literal["all"] = Field(
        "all",
        description="Maximum number of earlier pairs per new pair, drawn at random by the seed; all: no maximum.",
    )
    max_similarity: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Similarity of a pair's answers, 1 - edit distance / length of the longer one in tokens, from "
        "which the pair is dropped; 1 drops identical answers only.",
    )
    max_length_ratio: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Largest ratio of a pair's longer answer to its shorter one, in tokens; a pair above it is "
        "dropped. 0 for no limit.",
    )

    @field_validator("history_ratio", mode="before")
    @classmethod
    def _check_history_ratio(cls, value: object) -> object:
        if value == "all" or (isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < inf):
            return value
        raise ValueError("give a number above 0, or 'all'; for no older pairs, spin.history = 0")

    @field_validator("max_length_ratio")
    @classmethod
    def _check_max_length_ratio(cls, value: float) -> float:
        if 0 < value < 1:
            raise ValueError("the ratio of longer to shorter answer is at least 1; give 1 or more, or 0 for no limit")
        return value


SCHEDULES = ("spin.ref_policy_kl_penalty", "spin.max_epochs", "generation.temperature", "training.lr")
"""Settings that take one number, or a list with one number per iteration."""


def parse_duration(text: str) -> float:
    """Parse a duration, `"90"` (seconds) or NeMo's `"DD:HH:MM:SS"`, to seconds; `""` means no limit, infinity.

    Raises:
        ValueError: the text has neither form.
    """
    if not text:
        return float("inf")
    parts = text.split(":")
    if len(parts) not in (1, 4) or not all(part.replace(".", "", 1).isdigit() for part in parts):
        raise ValueError(f"{text!r} is not a duration; write seconds, or days:hours:minutes:seconds like 00:03:50:00")
    if len(parts) == 1:
        return float(parts[0])
    days, hours, minutes, seconds = (float(part) for part in parts)
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


class RunSettings(Section):
    """Name, storage, seed and time limit of the run."""

    name: str = Field(
        "spin",
        pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
        description="Name of the run, shown in the Kubeflow UI and in the report.",
    )
    uri: str = Field(
        "",
        description="Folder or s3://bucket/prefix that holds the run; starting a run with the same one resumes it.",
    )
    seed: int = Field(
        0, ge=0, lt=2**31, description="Random seed of the validation split, of sampling and of the data order."
    )
    max_time: str = Field(
        "", description="Wall-clock limit of one attempt, in seconds or as DD:HH:MM:SS; empty for no limit."
    )

    @field_validator("max_time")
    @classmethod
    def _check_max_time(cls, value: str) -> str:
        parse_duration(value)
        return value

    @property
    def max_time_s(self) -> float:
        """`max_time` in seconds; infinity for no limit."""
        return parse_duration(self.max_time)


class ModelSettings(Section):
    """The model that iteration 0 starts from."""

    base: str = Field(
        min_length=1,
        description="Model folder in Hugging Face layout: a path, s3://…, hf://org/name@revision, or builtin:NAME.",
    )
    sha256: str = Field(
        "",
        pattern=r"^([0-9a-f]{64})?$",
        description="Expected SHA-256 of the base model's files; the run refuses to start with other files. "
        "Empty: not checked.",
    )
    forked_from: str = Field(
        "", description="Run and iteration that the base model was taken from; set by --fork-from."
    )
    trust_remote_code: bool = Field(False, description="Whether to run Python code that the model's folder contains.")


_RENDERING_ARGUMENTS = frozenset(
    {
        *("messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt"),
        *("continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors"),
        *("return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "strftime_now"),
    }
)
"""Names that `apply_chat_template` takes for itself or that the renderer sets."""


class DataSettings(Section):
    """Prompts and their human-written answers."""

    train: str = Field(
        min_length=1,
        description="Training data, a JSONL, Parquet or Arrow file or a folder of them: a path, s3://…, "
        "hf://datasets/org/name, or builtin:NAME. Of a folder, files that are named test or validation are left out; "
        "`#split` after the address names a split (hf://datasets/org/name#train_sft).",
    )
    validation: str = Field(
        "",
        description="Validation data, in the same forms; of a folder with several splits, that of validation, or else "
        "test. Empty: a part of the training data is held out.",
    )
    validation_size: CountOrFraction = Field(
        0.05, description="Fraction or number of records held out for validation when `validation` is empty."
    )
    split: Literal["auto", "hash", "shuffle"] = Field(
        "auto",
        description="How the records to hold out are chosen. hash: by a seeded hash of the prompt, which is compared "
        "with the fraction, so that equal prompts stay together and records that are added later leave the others "
        "where they are; shuffle: an exact number, by a seeded permutation of all records. auto: hash where "
        "`validation_size` is a fraction, shuffle where it is a number. A run keeps the split that it began with.",
    )
    shard_by: Literal["tokens", "records"] = Field(
        "tokens",
        description="What the shards (`generation.shards`) have about equal parts of: tokens of prompts and human "
        "answers, or records. A run keeps the shards that it began with.",
    )
    shard_tokens: int = Field(
        8_000_000,
        ge=1,
        description="Most tokens of prompts and human answers of a shard, where `generation.shards` is 0.",
    )
    chat_template: str = Field(
        "",
        description="Chat template: the path of a Jinja file (with a / or the suffix .jinja; also s3://…, hf://…), or "
        "the name of one of the model's several templates. Empty: the model's own, or its default one.",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="Variables that the chat template reads besides the turns, like enable_thinking = false.",
    )
    chat_template_date: str = Field(
        "",
        description="Date and time for chat templates that render one, like 2026-07-31T09:30:00. Empty: the time "
        "at which the data is rendered; it is recorded, and the same in all prompts of the run.",
    )
    max_length: int = Field(1024, ge=8, description="Maximum number of tokens of prompt and answer together.")
    max_prompt_length: int = Field(
        512, ge=4, description="Maximum number of tokens of a prompt; for a longer one see `long_prompts`."
    )
    long_prompts: Literal["cut_middle", "cut_start", "refuse"] = Field(
        "cut_middle",
        description="What to do with a prompt above `max_prompt_length`: cut_middle keeps as many of its first tokens "
        "(system turn) as of its last, cut_start its last, refuse treats the record as a bad one.",
    )
    max_train_records: int = Field(
        0, ge=0, description="Number of training records to use, the first ones after the split; 0 for all."
    )
    max_validation_records: int = Field(
        0, ge=0, description="Number of validation records to use, the first ones; 0 for all."
    )
    deduplicate: bool | Literal["across"] = Field(
        True,
        description="Whether duplicates are left out of training: records whose prompt is a validation prompt too (of "
        "one file, equal prompts are held out together), and records that repeat an earlier one, prompt and answer; "
        '"across" leaves out only the former. All are counted.',
    )
    on_bad_record: Literal["fail", "skip"] = Field(
        "fail", description="What to do with a record that cannot be parsed: refuse the data set, or skip and count it."
    )

    _fraction = field_validator("validation_size")(check_fraction)

    @field_validator("chat_template_kwargs")
    @classmethod
    def _check_chat_template_kwargs(cls, value: dict[str, Any]) -> dict[str, Any]:
        if reserved := sorted(value.keys() & _RENDERING_ARGUMENTS):
            raise ValueError(f"{', '.join(reserved)} is set by the renderer; leave it out")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"give text, numbers, true, false, lists and tables only ({error})") from error
        return value

    @field_validator("chat_template_date")
    @classmethod
    def _check_chat_template_date(cls, value: str) -> str:
        if value:
            try:
                datetime.fromisoformat(value)
            except ValueError as error:
                raise ValueError(f"{value!r} is not a date; write it like 2026-07-31T09:30:00") from error
        return value

    @property
    def splits_by_hash(self) -> bool:
        """Whether a hash of the prompt decides which records are held out."""
        return self.split == "hash" or (self.split == "auto" and isinstance(self.validation_size, float))

    @property
    def chat_template_file(self) -> str:
        """Address of the chat template's file; empty where `chat_template` is a name or empty."""
        is_file = "/" in self.chat_template or self.chat_template.endswith(".jinja")
        return self.chat_template if is_file else ""

    @model_validator(mode="after")
    def _check_prompt_length(self) -> DataSettings:
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length ({self.max_prompt_length}) leaves no room for an answer within "
                f"max_length ({self.max_length}); make it smaller"
            )
        return self


Epochs = Annotated[int, Field(ge=1, le=32)]


class SpinSettings(PoolSettings):
    """Number of iterations and epochs, weight of the log-ratio, and the pairs that are trained on."""

    max_iterations: int = Field(
        3, ge=1, le=32, description="Number of self-play iterations; may be changed when the run is resumed."
    )
    max_epochs: Epochs | list[Epochs] = Field(
        1,
        description="Number of epochs per iteration: one number, or a list with one per iteration; fixed when the "
        "pipeline is compiled.",
    )
    max_steps: int = Field(
        -1, ge=-1, description="Maximum number of optimizer steps over all iterations; -1 for no limit."
    )
    ref_policy_kl_penalty: PositiveFloat | list[PositiveFloat] = Field(
        0.2, description="Weight beta of the log-ratio: one number, or a list with one per iteration."
    )
    reset_optimizer: bool = Field(
        True,
        description="Whether each iteration starts with a fresh optimizer state instead of the final state of the "
        "iteration that trained its reference.",
    )

    @model_validator(mode="after")
    def _check_lists(self) -> SpinSettings:
        check_per_iteration("ref_policy_kl_penalty", self.ref_policy_kl_penalty, self.max_iterations)
        check_per_iteration("max_epochs", self.max_epochs, self.max_iterations)
        return self

    def epochs(self, iteration: int) -> int:
        """Number of epochs of an iteration."""
        return per_iteration(self.max_epochs, iteration)

    def epochs_before(self, iteration: int) -> int:
        """Number of epochs of all iterations before one; for `max_iterations`, those of the whole run."""
        return sum(map(self.epochs, range(iteration)))

    def beta(self, iteration: int) -> float:
        """Weight of the log-ratio in an iteration."""
        return per_iteration(self.ref_policy_kl_penalty, iteration)


class ValidationSettings(Section):
    """Negative log-likelihood of held-out human answers, and answers sampled to their prompts."""

    batch_size: int = Field(8, ge=1, description="Number of answers per forward pass.")
    limit_val_batches: CountOrFraction = Field(1.0, description="Fraction or number of validation batches to use.")
    val_check_interval: CountOrFraction = Field(
        1.0,
        description="Interval of validation within an epoch, as a number of steps or a fraction of the epoch; 1.0 "
        "validates at its end only.",
    )
    num_samples: int = Field(
        64,
        ge=0,
        description="Number of held-out prompts that each validated policy answers, sampled and greedy, to measure its "
        "answers; 0 for none.",
    )

    _fractions = field_validator("limit_val_batches", "val_check_interval")(check_fraction)
    _not_none = field_validator("limit_val_batches")(check_some)
