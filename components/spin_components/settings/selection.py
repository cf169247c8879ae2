"""Settings of `[selection]`: which iteration is best, what counts as better, and what follows."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, field_validator

from spin_components.settings.section import Section

HELD_OUT_MEASURES = ("nll", "chrf", "match")
"""Measures that every validation gives."""
JUDGE = "judge"
"""The measure that is the judge's score."""
TASK = "task:"
"""Beginning of a measure that is a metric of a task, `task:NAME` or `task:NAME/METRIC`."""
_TASK_MEASURE = re.compile(r"task:([^\s/\\*?\[\]]+)(?:/([^\s/]+))?")


def check_measure(value: str) -> str:
    """Return the name of a measure; raises ValueError where there is no such measure."""
    if value not in (*HELD_OUT_MEASURES, JUDGE) and not _TASK_MEASURE.fullmatch(value):
        raise ValueError("expected 'nll', 'chrf', 'match', 'judge', or 'task:NAME' for a task of evaluation.tasks")
    return value


def task_measure(measure: str) -> tuple[str, str]:
    """The task and the metric that a measure names; the metric is empty for the task's first one, both for no task."""
    found = _TASK_MEASURE.fullmatch(measure)
    return (found[1], found[2] or "") if found else ("", "")


_NAMES = {"anyOf": [{"enum": [*HELD_OUT_MEASURES, JUDGE]}, {"type": "string"}]}
Measure = Annotated[str, AfterValidator(check_measure), WithJsonSchema(_NAMES)]
Reaction = Literal["stop", "roll_back", "continue"]
MIN_MEASURED = 8
"""Number of sampled answers below which a change of their measures has no interval: resampling fewer gives intervals
that are too narrow."""
_MAX_LENGTH_RATIO = 2.0


class SelectionSettings(Section):
    """Choice of the next reference, retention of weights, and early stopping."""

    epoch: Literal["last", "best"] = Field(
        "last",
        description="Epoch whose policy becomes the next reference: the last one, or the one of lowest val_loss.",
    )
    save_top_k: int = Field(
        3,
        ge=-1,
        description="Number of iterations, by lowest val_loss, whose weights are kept; -1 for all. The last and the "
        "best are always kept.",
    )
    confidence: float = Field(
        0.95,
        ge=0.5,
        lt=1,
        description="Confidence level of the interval of a change of val_loss or another measure; a change is "
        "significant when the interval does not contain 0.",
    )
    measure: Measure = Field(
        "nll",
        description="Measure that decides whether an iteration is better: nll, the loss of the held-out human answers; "
        "chrf, the likeness of the policy's greedy answers to them; match, the share of them that its greedy answers "
        "equal; judge, the judge's mean score of its sampled answers; task:NAME or task:NAME/METRIC, a metric of a "
        "task of evaluation.tasks, the first that it reports by default. With judge and task the run waits for the "
        "evaluation of each model. Fixed when the pipeline is compiled, as far as it waits or not.",
    )
    on_regression: Reaction = Field(
        "stop",
        description="What follows an iteration that is significantly worse than the best one: stop the run, continue "
        "from the best policy (roll_back), or continue from the worse one.",
    )
    on_drift: Reaction = Field(
        "continue",
        description="What follows an iteration that drifted, whose own answers went astray: stop the run, continue "
        "from the best policy (roll_back), or continue from this one.",
    )
    patience: int = Field(
        2,
        ge=0,
        description="Number of consecutive iterations without a significant gain after which the run stops; 0 disables "
        "this.",
    )
    min_delta: float = Field(
        0.0,
        ge=0,
        description="Smallest change of the measure that counts as a gain or a regression: nats per token (nll), "
        "points of 100 (chrf), a share (match), points of the judge's 1 to 10 (judge), or the unit of the task's "
        "metric, which is a share for acc and exact_match.",
    )
    max_repetition: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Largest fraction of repeated 4-grams in sampled answers; a policy above it has drifted. "
        "0 for no limit.",
    )
    max_length_ratio: float = Field(
        _MAX_LENGTH_RATIO,
        ge=0,
        description="Largest ratio r of the mean length of sampled answers to that of the human answers; a policy "
        "above r or below 1/r has drifted. 0 for no limit.",
    )

    @field_validator("max_length_ratio")
    @classmethod
    def _check_max_length_ratio(cls, value: float) -> float:
        if 0 < value <= 1:
            raise ValueError("1 is the human's own length; give a limit above it, like 2.0, or 0 for none")
        return value

    @property
    def waits_for_evaluation(self) -> bool:
        """Whether what decides is a result of the evaluation, which every verdict then waits for."""
        return self.measure not in HELD_OUT_MEASURES

    @property
    def limits(self) -> list[str]:
        """Names of those limits on sampled answers that are set, and not by default."""
        is_set = {
            "max_repetition": self.max_repetition > 0,
            "max_length_ratio": self.max_length_ratio not in (0, _MAX_LENGTH_RATIO),
        }
        return [f"selection.{name}" for name, value in is_set.items() if value]
