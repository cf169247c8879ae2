"""Settings of generation, by the engines' names and by NeMo's."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from spin_components.settings.section import PositiveFloat, Section, per_iteration

MAX_SHARDS = 256
Temperature = Annotated[float, Field(ge=0, le=10)]


class GenerationSettings(Section):
    """Sampling of one answer per prompt from the reference."""

    engine: Literal["auto", "vllm", "transformers"] = Field(
        "auto", description="Generation engine; auto: vLLM where it is installed and expected to be faster."
    )
    temperature: Temperature | list[Temperature] = Field(
        1.0, description="Sampling temperature: one number, or a list with one per iteration; 0 is greedy decoding."
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Probability mass of the most likely tokens that are sampled from; 1 for all."
    )
    top_k: int = Field(0, ge=0, description="Number of most likely tokens that are sampled from; 0 for all.")
    repetition_penalty: PositiveFloat = Field(
        1.0, description="Penalty on the logits of tokens that occurred before; 1 for none."
    )
    max_new_tokens: int = Field(
        256, ge=1, description="Maximum number of tokens of an answer; NeMo's length_params.max_length."
    )
    min_new_tokens: int = Field(
        0, ge=0, description="Minimum number of tokens of an answer; NeMo's length_params.min_length."
    )
    stop: list[str] = Field(
        default_factory=list, description="Strings that end an answer; NeMo's sampling_params.end_strings."
    )
    shards: int = Field(
        1,
        ge=0,
        le=MAX_SHARDS,
        description="Number of parts of the prompts, generated in parallel; fixed when the pipeline is compiled. 0: "
        "`prepare` chooses it, so that a part has at most `data.shard_tokens` tokens, or as many parts as a cluster "
        "allows.",
    )
    on_truncated: Literal["keep", "drop"] = Field(
        "keep",
        description="Whether pairs whose answer was cut at max_new_tokens, without EOS, are trained on or dropped.",
    )
    batch_size: int = Field(
        64, ge=1, description="Number of sequences per batch with transformers; the minimum with vLLM."
    )
    block_size: int = Field(
        512,
        ge=0,
        description="Most prompts of a shard that one engine samples together, with random numbers of their own, "
        "before it takes others; 0: all of a shard.",
    )
    tensor_parallel: int = Field(1, ge=1, description="Number of GPUs of one vLLM engine.")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="Fraction of a GPU's memory that vLLM may use.")
    kv_cache_gib: PositiveFloat = Field(1.0, description="Size of vLLM's key-value cache on a CPU, in GiB.")

    @model_validator(mode="before")
    @classmethod
    def _from_nemo(cls, values: Any) -> Any:
        """Accept NeMo's tables `sampling_params` and `length_params`."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        sampling, lengths = values.pop("sampling_params", None) or {}, values.pop("length_params", None) or {}
        names = {"max_length": "max_new_tokens", "min_length": "min_new_tokens", "end_strings": "stop"}
        greedy = isinstance(sampling, dict) and sampling.get("use_greedy", False)
        for table in (sampling, lengths):
            if not isinstance(table, dict):
                raise ValueError("sampling_params and length_params must be tables")
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
    def _check_lengths(self) -> GenerationSettings:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens ({self.min_new_tokens}) exceeds max_new_tokens ({self.max_new_tokens})")
        return self

    def inputs(self) -> dict[str, Any]:
        """What answers depend on, by name. `block_size` is left out at 0, as in records of before it existed."""
        values = {f"generation.{name}": value for name, value in self.model_dump(mode="json").items()}
        if not self.block_size:
            del values["generation.block_size"]
        return values

    def blocks(self, num_prompts: int) -> list[range]:
        """Divide the prompts of a shard into blocks of similar size: numbers of the prompts of each.

        There are 1, 2, 4, 8 or a multiple of 8 blocks, so that as many engines as GPUs of a machine get as many each.
        """
        num = -(-num_prompts // self.block_size) if self.block_size else 1
        unit = min(8, 1 << (num - 1).bit_length())
        num = min(-(-num // unit) * unit, num_prompts)
        ends = [index * num_prompts // num for index in range(num + 1)]
        return [range(start, end) for start, end in pairwise(ends)]

    def at(self, iteration: int) -> GenerationSettings:
        """The settings of one iteration, lists replaced by their entries."""
        return self.model_copy(update={"temperature": per_iteration(self.temperature, iteration)})
