"""Trainer state: counters of a run, from which iteration and epoch follow."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class TrainerState(BaseModel):
    """NeMo's trainer state, over the whole run.

    Attributes:
        step: optimizer steps done.
        consumed_samples: pairs consumed by those steps.
        steps_per_epoch: steps of one epoch, for every iteration begun so far. In NeMo one number; here iterations may
            differ, because pairs without signal are dropped.
        epochs: number of epochs, for every iteration begun so far; in NeMo one number.
        num_updates: updates that the optimizer's state has accumulated; fewer than `step` where an iteration starts
            with a fresh optimizer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = 0
    consumed_samples: int = 0
    steps_per_epoch: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()
    num_updates: int = 0

    def begin_iteration(self, iteration: int, steps_per_epoch: int, epochs: int) -> TrainerState:
        """The state at the start of an iteration; discards what was recorded for it and later iterations."""
        return self.model_copy(
            update={
                "steps_per_epoch": (*self.steps_per_epoch[:iteration], steps_per_epoch),
                "epochs": (*self.epochs[:iteration], epochs),
            }
        )

    def after_step(self, num_pairs: int) -> TrainerState:
        """The state after one more optimizer step over `num_pairs` pairs."""
        return self.model_copy(
            update={
                "step": self.step + 1,
                "consumed_samples": self.consumed_samples + num_pairs,
                "num_updates": self.num_updates + 1,
            }
        )

    @property
    def iteration(self) -> int:
        """Iteration of the next step; for iterations of equal length, (step // steps_per_epoch) // max_epochs."""
        return self._position()[0]

    @property
    def epoch(self) -> int:
        """Epoch of the next step within its iteration; likewise (step // steps_per_epoch) % max_epochs."""
        return self._position()[1]

    def _position(self) -> tuple[int, int]:
        remaining = self.step
        for iteration, (steps, epochs) in enumerate(zip(self.steps_per_epoch, self.epochs, strict=True)):
            if remaining < steps * epochs:
                return iteration, remaining // steps
            remaining -= steps * epochs
        return len(self.steps_per_epoch), 0
