"""What an epoch trains on and by which schedule: an iteration, the warm-up, or the control of an iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spin_components.algorithm.batching import derive_seed
from spin_components.algorithm.loss import Objective
from spin_components.record.training_pairs import TrainingPairs, load_human_answers, load_training_pairs
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.base import RunStore


@dataclass(frozen=True, slots=True)
class Course:
    """The epochs that an epoch is one of.

    Attributes:
        settings: of the run.
        number: t, `layout.WARM_UP`, or that of a control; see `layout.iteration`.
    """

    settings: Settings
    number: int

    @property
    def iteration(self) -> int:
        """The iteration whose schedule holds; 0 for the warm-up, which has its own."""
        controlled = layout.controlled(self.number)
        return controlled if controlled is not None else max(self.number, 0)

    @property
    def is_warm_up(self) -> bool:
        """Whether this is the warm-up."""
        return self.number == layout.WARM_UP

    @property
    def is_self_play(self) -> bool:
        """Whether it trains on pairs; otherwise on the human answers alone."""
        return self.number >= 0

    @property
    def num_epochs(self) -> int:
        """Number of epochs; of the warm-up, at most so many."""
        return self.settings.warm_up.max_epochs if self.is_warm_up else self.settings.spin.epochs(self.iteration)

    @property
    def peak_lr(self) -> float:
        """Peak learning rate."""
        if self.is_warm_up:
            return self.settings.warm_up.lr
        own = 0.0 if self.is_self_play else self.settings.control.lr
        return own or self.settings.training.peak_lr(self.iteration)

    @property
    def max_steps(self) -> int:
        """Largest number of optimizer steps up to its end; -1 for no limit."""
        return -1 if self.is_warm_up else self.settings.spin.max_steps

    @property
    def objective(self) -> Objective:
        """Options of the loss."""
        options: dict[str, Any] = self.settings.objective.model_dump() if self.is_self_play else {"loss": "sft"}
        if self.settings.objective.answers(self.iteration) < 3:
            options["history_weight"] = 0.0
        return Objective(self.settings.spin.beta(self.iteration), **options)

    def span(self, steps_per_epoch: int) -> tuple[int, int]:
        """Steps of the learning rate's schedule before the first epoch, and in total.

        Over the run, every epoch counts as many steps as one of this iteration, since the number of pairs of later
        iterations is not known: with as many pairs in each iteration these are the run's optimizer steps, as in NeMo.
        """
        spin = self.settings.spin
        if self.is_warm_up or self.settings.training.lr_schedule_span == "iteration":
            return 0, steps_per_epoch * self.num_epochs
        return (
            steps_per_epoch * spin.epochs_before(self.iteration),
            steps_per_epoch * spin.epochs_before(spin.max_iterations),
        )

    def load(self, run: RunStore) -> TrainingPairs:
        """Read and verify what it trains on.

        Without self-play the pairs have no generated answers, and there are no scores. A control has the pairs of its
        iteration, in the same batches.

        Raises:
            DataError, IntegrityError: see `load_training_pairs`.
        """
        if self.is_warm_up:
            seed = derive_seed(self.settings.run.seed, "batches", layout.WARM_UP)
            return load_human_answers(run, self.settings.training.global_batch_size, seed)
        return load_training_pairs(run, self.iteration, with_generated=self.is_self_play)
