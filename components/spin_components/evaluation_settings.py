"""Settings of the evaluate step: lm-evaluation-harness tasks and an LLM judge."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from spin_components.section import CountOrFraction, Section, check_fraction, check_some

JUDGE_KEY = "SPIN_JUDGE_API_KEY"
"""Environment variable with the API key of the judge's endpoint; there is no setting for it."""

TaskName = Annotated[str, Field(pattern=r"^[^\s/\\*?\[\]]+$")]


class EvaluationSettings(Section):
    """Evaluation of the base model and of each iteration's model; may change between attempts.

    The pipeline has evaluate steps only where `tasks` or `judge_url` is set; no other step depends on them.
    """

    tasks: list[TaskName] = Field(
        default_factory=list,
        description="Names of lm-evaluation-harness tasks, groups or tags to evaluate on; empty for none.",
    )
    task_files: str = Field(
        "",
        description="Folder of your own task files (*.yaml) with their data, a path or s3://…; it is copied into the "
        "run.",
    )
    trust_task_code: bool = Field(
        False,
        description="Whether to run Python functions that task files name with !function, and tasks that are marked "
        "unsafe.",
    )
    num_fewshot: int = Field(
        -1, ge=-1, description="Number of solved examples in each prompt; -1: as each task defines it."
    )
    limit: CountOrFraction = Field(1.0, description="Fraction or number of each task's documents to evaluate.")
    batch_size: int = Field(8, ge=1, description="Number of sequences per forward pass.")
    chat_template: bool = Field(
        False, description="Whether to render the tasks' prompts with the model's chat template."
    )
    judge_url: str = Field(
        "",
        description="OpenAI-compatible endpoint of an LLM judge, as in https://host/v1; empty for no judge. The API "
        f"key comes from the variable {JUDGE_KEY}.",
    )
    judge_model: str = Field("", description="Name of the judge's model at the endpoint.")
    judge_num_samples: int = Field(
        0, ge=0, description="Number of sampled held-out answers that the judge scores; 0 for all of them."
    )
    judge_template: str = Field(
        "",
        description="Prompt of the judge, with the placeholders {prompt} and {answer}, optionally {human}; empty for "
        "the built-in prompt.",
    )
    judge_concurrency: int = Field(4, ge=1, le=32, description="Number of concurrent requests to the judge.")
    judge_timeout_s: int = Field(120, ge=1, description="Timeout of one request to the judge, in seconds.")

    _fractions = field_validator("limit")(check_fraction)
    _not_none = field_validator("limit")(check_some)

    @field_validator("judge_url")
    @classmethod
    def _check_judge_url(cls, value: str) -> str:
        if not value:
            return value
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError("write http://host:port/v1 or https://host/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(f"credentials in an address would be stored with the run; set {JUDGE_KEY} instead")
        return value.rstrip("/")

    @field_validator("judge_template")
    @classmethod
    def _check_judge_template(cls, value: str) -> str:
        if value and (missing := [name for name in ("{prompt}", "{answer}") if name not in value]):
            raise ValueError(f"the placeholder {' and '.join(missing)} is missing; expected {{prompt}} and {{answer}}")
        return value

    @model_validator(mode="after")
    def _check_combinations(self) -> EvaluationSettings:
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"evaluation.tasks names a task twice: {', '.join(self.tasks)}")
        if self.task_files and not self.tasks:
            raise ValueError("evaluation.task_files is set, but evaluation.tasks is empty; name the tasks to run")
        if bool(self.judge_url) != bool(self.judge_model):
            raise ValueError(
                "evaluation.judge_url and evaluation.judge_model must both be set, or neither; "
                f"found {self.judge_url!r} and {self.judge_model!r}"
            )
        return self

    @property
    def is_on(self) -> bool:
        """Whether models are evaluated."""
        return bool(self.tasks or self.judge_url)

    def task_inputs(self) -> dict[str, Any]:
        """Settings that results of tasks depend on, by name."""
        names = ("tasks", "num_fewshot", "limit", "chat_template")
        return {f"evaluation.{name}": value for name, value in self.model_dump(mode="json", include=set(names)).items()}

    def judge_inputs(self) -> dict[str, Any]:
        """Settings that the judge's scores depend on, by name."""
        names = ("judge_url", "judge_model", "judge_num_samples", "judge_template")
        return {f"evaluation.{name}": value for name, value in self.model_dump(mode="json", include=set(names)).items()}
