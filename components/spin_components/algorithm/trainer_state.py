"""Where training stands: two counters, from which epoch and iteration follow."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class TrainerState(BaseModel):
    """NeMo's trainer state, over the whole run.

    Attributes:
        step: optimizer steps done.
        consumed_samples: pairs those steps used.
        steps_per_epoch: steps of one epoch, for every iteration begun so far. NeMo takes this to be one number;
            here iterations may differ, because pairs without signal are dropped.
        epochs: of every iteration begun so far; one number in NeMo, here a setting that may differ as well.
        num_updates: how many updates the optimizer's state has seen: fewer than `step` where iterations begin with a
            fresh one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = 0
    consumed_samples: int = 0
    steps_per_epoch: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()
    num_updates: int = 0

    def begin_iteration(self, iteration: int, steps_per_epoch: int, epochs: int) -> TrainerState:
        """The state at the start of an iteration, with its number of steps and epochs known."""
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
        """Of the next step; where all iterations have as many steps: (step // steps_per_epoch) // max_epochs."""
        return self._position()[0]

    @property
    def epoch(self) -> int:
        """Of the next step, within its iteration; likewise (step // steps_per_epoch) % max_epochs."""
        return self._position()[1]

    def _position(self) -> tuple[int, int]:
        left = self.step
        for iteration, (steps, epochs) in enumerate(zip(self.steps_per_epoch, self.epochs, strict=True)):
            if left < steps * epochs:
                return iteration, left // steps
            left -= steps * epochs
        return len(self.steps_per_epoch), 0
