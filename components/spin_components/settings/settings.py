"""The settings of a run: one frozen section a step, limits in the types.

Names and meanings follow NeMo-Aligner's SPIN configuration where it has them. The `description` of a field is its entry
in the reference of settings. No torch is imported: the command line parses settings where torch is not installed.
"""

from __future__ import annotations

from pydantic import model_validator

from spin_components.settings.attempt import (
    EvaluationSettings,
    HardwareSettings,
    PlacementSettings,
    TrackingSettings,
)
from spin_components.settings.generation import GenerationSettings
from spin_components.settings.objective import ObjectiveSettings
from spin_components.settings.run import (
    DataSettings,
    ModelSettings,
    RunSettings,
    SpinSettings,
    ValidationSettings,
)
from spin_components.settings.section import (
    Section,
    check_per_iteration,
)
from spin_components.settings.selection import (
    HELD_OUT_MEASURES,
    JUDGE,
    MIN_MEASURED,
    SelectionSettings,
    task_measure,
)
from spin_components.settings.training import (
    ControlSettings,
    LoraSettings,
    TrainingSettings,
    WarmUpSettings,
)


class Settings(Section):
    """All sections, as a configuration file holds them and `run.json` records them."""

    run: RunSettings = RunSettings()
    model: ModelSettings
    data: DataSettings
    warm_up: WarmUpSettings = WarmUpSettings()
    spin: SpinSettings = SpinSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    generation: GenerationSettings = GenerationSettings()
    training: TrainingSettings = TrainingSettings()
    lora: LoraSettings = LoraSettings()
    validation: ValidationSettings = ValidationSettings()
    control: ControlSettings = ControlSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    selection: SelectionSettings = SelectionSettings()
    hardware: HardwareSettings = HardwareSettings()
    placement: PlacementSettings = PlacementSettings()
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="after")
    def _check_sections(self) -> Settings:
        check_per_iteration("training.lr", self.training.lr, self.spin.max_iterations)
        check_per_iteration("generation.temperature", self.generation.temperature, self.spin.max_iterations)
        micro_batch, ranks = self.training.micro_batch_size, self.hardware.world_size
        if self.training.global_batch_size % (micro_batch * ranks):
            raise ValueError(
                f"training.global_batch_size ({self.training.global_batch_size}) must be a multiple of "
                f"training.micro_batch_size x hardware.ranks x hardware.nodes ({micro_batch} x "
                f"{self.hardware.ranks} x {self.hardware.nodes})"
            )
        if self.training.backend == "torch" and ranks > 1:
            raise ValueError(
                f"training.backend = 'torch' runs one rank, but hardware.ranks x hardware.nodes = {ranks}; "
                "use 'deepspeed'"
            )
        if self.training.offload_optimizer:
            self._check_offload(ranks)
        if self.warm_up.is_on and self.training.min_lr > self.warm_up.lr:
            raise ValueError(
                f"training.min_lr ({self.training.min_lr}) exceeds warm_up.lr ({self.warm_up.lr}); the schedule falls "
                "from warm_up.lr to training.min_lr"
            )
        if self.control.sft and self.control.lr and self.training.min_lr > self.control.lr:
            raise ValueError(
                f"training.min_lr ({self.training.min_lr}) exceeds control.lr ({self.control.lr}); the schedule falls "
                "from control.lr to training.min_lr"
            )
        if self.lora.is_on:
            self._check_lora(ranks)
        if self.hardware.shard_scoring == "on":
            self._check_sharding()
        if self.evaluation.judge_url:
            self._check_judge()
        if self.selection.limits and not self.validation.num_samples:
            raise ValueError(
                f"{' and '.join(self.selection.limits)} limit sampled answers, but validation.num_samples is 0; "
                "set it, e.g. to 64, or remove the limits"
            )
        self._check_measure()
        return self

    def num_gpus(self, step: str) -> int:
        """GPUs that a pod of a step requests: those of one training pod, divided among pods that work side by side."""
        ranks, engine = self.hardware.ranks, self.generation.tensor_parallel
        shards = max(1, self.generation.shards)
        match step:
            case "generate":
                return engine * max(1, ranks // shards // engine)
            case "ref-logprob":
                if self.hardware.shard_scoring == "on":
                    return ranks
                least = min(engine, ranks) if self.hardware.shard_scoring == "auto" else 1
                return max(least, ranks // shards)
            case "train-epoch" | "warm-up" | "control" | "validate":
                return ranks
        return 1

    def schedule_inputs(self) -> dict[str, int]:
        """What the learning rates of an iteration depend on beyond it, by name; empty for schedules of an iteration."""
        if self.training.lr_schedule_span == "iteration":
            return {}
        return {"training.lr_schedule_span (epochs of the run)": self.spin.epochs_before(self.spin.max_iterations)}

    def _check_measure(self) -> None:
        """Refuse a measure that could never decide."""
        measure, evaluation, num_samples = self.selection.measure, self.evaluation, self.validation.num_samples
        task = task_measure(measure)[0]
        if task and task not in evaluation.tasks:
            raise ValueError(
                f"selection.measure = {measure!r}, but evaluation.tasks has no {task!r}; found "
                f"{', '.join(evaluation.tasks) or 'none'}. Add it, or set another selection.measure"
            )
        if measure == JUDGE and not evaluation.judge_url:
            raise ValueError(
                "selection.measure = 'judge', but there is no judge; set evaluation.judge_url and "
                "evaluation.judge_model, or another selection.measure"
            )
        if measure not in (JUDGE, *HELD_OUT_MEASURES[1:]):
            return
        if num_samples < MIN_MEASURED:
            raise ValueError(
                f"selection.measure = {measure!r} compares sampled answers, of which at least {MIN_MEASURED} are "
                f"needed, but validation.num_samples is {num_samples}; set it, e.g. to 64, or selection.measure = "
                "'nll'"
            )
        if measure == JUDGE and 0 < evaluation.judge_num_samples < MIN_MEASURED:
            raise ValueError(
                f"selection.measure = 'judge' needs at least {MIN_MEASURED} scored answers, but "
                f"evaluation.judge_num_samples is {evaluation.judge_num_samples}; raise it, or set it to 0 for all"
            )

    def _check_judge(self) -> None:
        requested, sampled = self.evaluation.judge_num_samples, self.validation.num_samples
        if not sampled:
            raise ValueError(
                "evaluation.judge_url needs sampled answers to score, but validation.num_samples is 0; "
                "set it, e.g. to 32, or unset evaluation.judge_url"
            )
        if requested > sampled:
            raise ValueError(
                f"evaluation.judge_num_samples = {requested} exceeds validation.num_samples = {sampled}; "
                "lower the former or raise the latter"
            )

    def _check_lora(self, ranks: int) -> None:
        if not self.spin.reset_optimizer:
            raise ValueError(
                f"spin.reset_optimizer = false is not supported with lora.r = {self.lora.r}: every iteration trains a "
                "fresh adapter, to which the optimizer state of the previous one does not apply; set it to true"
            )
        is_deepspeed = self.training.backend == "deepspeed" or ranks > 1
        if self.lora.is_quantized and is_deepspeed and self.training.zero_stage not in (0, 1, 2):
            raise ValueError(
                f"lora.quantize = {self.lora.quantize!r} is not supported with training.zero_stage = "
                f"{self.training.zero_stage!r}, which partitions the weights among ranks: 4-bit weights cannot be "
                "partitioned; use 0, 1 or 2"
            )

    def _check_sharding(self) -> None:
        if self.hardware.ranks < 2:
            raise ValueError(
                "hardware.shard_scoring = 'on' divides a model among processes, but hardware.ranks = 1; set it to the "
                "number of GPUs of a machine, or hardware.shard_scoring = 'auto'"
            )
        if self.lora.is_quantized:
            raise ValueError(
                f"hardware.shard_scoring = 'on' is not supported with lora.quantize = {self.lora.quantize!r}: 4-bit "
                "weights cannot be divided among processes; set it to 'auto'"
            )

    def _check_offload(self, ranks: int) -> None:
        training = self.training
        if training.backend == "torch" or (training.backend == "auto" and ranks == 1):
            raise ValueError(
                "training.offload_optimizer = true needs DeepSpeed, but the backend is plain torch; "
                "set training.backend = 'deepspeed'"
            )
        if training.zero_stage == 0:
            raise ValueError(
                "training.offload_optimizer = true needs training.zero_stage = 1, 2 or 3; found 0, which has no offload"
            )
