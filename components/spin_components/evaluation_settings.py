"""What published models are evaluated by, beside the held-out loss: tasks of a harness, a judge's scores."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from spin_components.section import CountOrFraction, Section, check_fraction, check_some

JUDGE_KEY = "SPIN_JUDGE_API_KEY"
"""Names the environment variable with the judge's key; there is no setting for it."""

TaskName = Annotated[str, Field(pattern=r"^[^\s/\\*?\[\]]+$")]


class EvaluationSettings(Section):
    """An optional step after each iteration, and once for the base model; free to change between attempts.

    The step is part of the pipeline where `tasks` or `judge_url` is set, and no other step waits for it.
    """

    tasks: list[TaskName] = Field(
        default_factory=list, description="tasks, groups or tags of lm-evaluation-harness, by name; empty: none"
    )
    task_files: str = Field(
        "", description="folder of your own task files (*.yaml) with their data: path or s3://…; copied into the run"
    )
    trust_task_code: bool = Field(
        False, description="run Python that task files name (!function), and tasks marked as unsafe"
    )
    num_fewshot: int = Field(-1, ge=-1, description="solved examples in each prompt; -1: as each task says")
    limit: CountOrFraction = Field(1.0, description="of each task's documents")
    batch_size: int = Field(8, ge=1, description="sequences a forward pass")
    chat_template: bool = Field(False, description="render the tasks' prompts by the model's chat template")
    judge_url: str = Field(
        "", description=f"OpenAI-compatible endpoint, https://host/v1; empty: no judge. {JUDGE_KEY} holds its key"
    )
    judge_model: str = Field("", description="name of the model that judges, as the endpoint knows it")
    judge_num_samples: int = Field(
        0, ge=0, description="answers to held-out prompts it scores, of validation.num_samples; 0: all of them"
    )
    judge_template: str = Field(
        "", description="what it is asked, with {prompt} and {answer}, and {human} if wanted; empty: a general question"
    )
    judge_concurrency: int = Field(4, ge=1, le=32, description="requests at a time")
    judge_timeout_s: int = Field(120, ge=1, description="for one reply")

    _fractions = field_validator("limit")(check_fraction)
    _not_none = field_validator("limit")(check_some)

    @field_validator("judge_url")
    @classmethod
    def _an_address_without_keys(cls, value: str) -> str:
        if not value:
            return value
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError("write http://host:port/v1 or https://host/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(f"an address that holds keys would be kept with the run; put the key into {JUDGE_KEY}")
        return value.rstrip("/")

    @field_validator("judge_template")
    @classmethod
    def _asks_about_an_answer(cls, value: str) -> str:
        if value and (lacking := [name for name in ("{prompt}", "{answer}") if name not in value]):
            raise ValueError(f"{' and '.join(lacking)} must stand in it, where the text is to be put")
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> EvaluationSettings:
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"evaluation.tasks names a task twice: {', '.join(self.tasks)}")
        if self.task_files and not self.tasks:
            raise ValueError("evaluation.task_files is set, but evaluation.tasks names none of its tasks; name them")
        if bool(self.judge_url) != bool(self.judge_model):
            raise ValueError(
                "evaluation.judge_url and evaluation.judge_model go together: which endpoint, and which model there; "
                f"found {self.judge_url!r} and {self.judge_model!r}"
            )
        return self

    @property
    def is_on(self) -> bool:
        """Whether models are evaluated at all."""
        return bool(self.tasks or self.judge_url)

    def task_inputs(self) -> dict[str, Any]:
        """What results of tasks depend on, by the settings' names."""
        names = ("tasks", "num_fewshot", "limit", "chat_template")
        return {f"evaluation.{name}": value for name, value in self.model_dump(mode="json", include=set(names)).items()}

    def judge_inputs(self) -> dict[str, Any]:
        """What a judge's scores depend on, likewise."""
        names = ("judge_url", "judge_model", "judge_num_samples", "judge_template")
        return {f"evaluation.{name}": value for name, value in self.model_dump(mode="json", include=set(names)).items()}
