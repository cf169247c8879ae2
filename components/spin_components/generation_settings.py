"""How the reference plays, in the terms of its engines and in NeMo's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from spin_components.section import PositiveFloat, Section, per_iteration

Temperature = Annotated[float, Field(ge=0, le=10)]


class GenerationSettings(Section):
    """How the reference plays: one sampled answer a prompt."""

    engine: Literal["auto", "vllm", "transformers"] = Field("auto", description="auto: vLLM where it pays")
    temperature: Temperature | list[Temperature] = Field(
        1.0, description="a number, or one number an iteration; 0 is greedy"
    )
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0 is off")
    repetition_penalty: PositiveFloat = 1.0
    max_new_tokens: int = Field(256, ge=1, description="NeMo's length_params.max_length")
    min_new_tokens: int = Field(0, ge=0, description="NeMo's length_params.min_length")
    stop: list[str] = Field(default_factory=list, description="NeMo's sampling_params.end_strings")
    shards: int = Field(1, ge=1, le=256, description="parts that are generated in parallel; fixed when compiled")
    on_truncated: Literal["keep", "drop"] = Field(
        "keep", description="answers cut at max_new_tokens: train on them, without EOS, or leave their pairs out"
    )
    batch_size: int = Field(64, ge=1, description="sequences at a time (transformers), at the least (vllm)")
    tensor_parallel: int = Field(1, ge=1, description="GPUs one vLLM engine spans")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="share of the GPU vLLM may take")
    kv_cache_gib: PositiveFloat = Field(1.0, description="vLLM's cache on a CPU, GiB")

    @model_validator(mode="before")
    @classmethod
    def _from_nemo(cls, values: Any) -> Any:
        """Accept NeMo's `sampling_params` and `length_params` tables."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        sampling, lengths = values.pop("sampling_params", None) or {}, values.pop("length_params", None) or {}
        names = {"max_length": "max_new_tokens", "min_length": "min_new_tokens", "end_strings": "stop"}
        greedy = isinstance(sampling, dict) and sampling.get("use_greedy", False)
        for table in (sampling, lengths):
            if not isinstance(table, dict):
                raise ValueError("sampling_params and length_params are tables")
            for key, value in table.items():
                if key in ("use_greedy", "all_probs", "compute_logprob", "add_BOS"):
                    if value and key != "use_greedy":
                        raise ValueError(f"sampling_params.{key} = {value!r} is not supported; leave it out")
                    continue
                values.setdefault(names.get(key, key), value)
        if greedy:
            values["temperature"] = 0.0
        return values

    @model_validator(mode="after")
    def _lengths_in_order(self) -> GenerationSettings:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens ({self.min_new_tokens}) exceeds max_new_tokens ({self.max_new_tokens})")
        return self

    def at(self, iteration: int) -> GenerationSettings:
        """As they hold in one iteration."""
        return self.model_copy(update={"temperature": per_iteration(self.temperature, iteration)})
