"""The epoch: global batches in their order, metrics, saves and validations on the way."""

from __future__ import annotations

import logging
import time
from typing import Any

from spin_components.algorithm.loss import Objective
from spin_components.algorithm.order import derive_seed, micro_batches, order_batches
from spin_components.algorithm.schedules import learning_rate, resolve_count
from spin_components.algorithm.trainer_state import TrainerState
from spin_components.data.shards import PairReward, Prompt, read_rows
from spin_components.events import Progress
from spin_components.execution import Step
from spin_components.store import layout
from spin_components.store.manifests import read_manifest
from spin_components.train_epoch.backend import Backend
from spin_components.train_epoch.job import EpochJob
from spin_components.train_epoch.pairs import ScoredPairs
from spin_components.train_epoch.saving import load_rewards, load_rows, save_partial
from spin_components.train_epoch.single_step import train_single_step
from spin_components.validate.nll import distributed_val_loss, validation_batches

logger = logging.getLogger(__name__)


def epoch_batches(job: EpochJob, data: ScoredPairs) -> list[tuple[int, ...]]:
    """The epoch's global batches in their order: the same for every rank, backend and attempt."""
    seed = derive_seed(job.settings.run.seed, "order", job.iteration, job.epoch)
    limit = resolve_count(job.settings.training.limit_train_batches, len(data.batches))
    return [data.batches[number] for number in order_batches(len(data.batches), seed, limit)]


class EpochLoop:
    """Trains one epoch on this rank.

    Attributes:
        state: counters after the steps done so far.
        rows: metrics of each step, over the whole epoch.
        rewards: of each pair, over the whole epoch.
        stopped: whether the attempt's time ran out first.
    """

    def __init__(self, job: EpochJob, backend: Backend, data: ScoredPairs, current: Step) -> None:
        self._job, self._backend, self._data, self._current = job, backend, data, current
        self._batches = epoch_batches(job, data)
        self._lengths = [pair.num_tokens for pair in data.pairs]
        spin = job.settings.spin
        num_epochs = spin.epochs(job.iteration)
        self._num_updates = len(self._batches) * num_epochs
        self._objective = Objective(spin.beta(job.iteration), **job.settings.objective.model_dump())
        self._val_batches: list[list[Prompt]] = []
        self.state: TrainerState = job.state.begin_iteration(job.iteration, len(self._batches), num_epochs)
        self.rows: list[dict[str, Any]] = load_rows(job)
        self.rewards: list[PairReward] = load_rewards(job)
        self.stopped = False
        self._progress = Progress(current.events, len(self._batches), "steps", done=job.first_step)

    def run(self) -> None:
        """Do what is left of the epoch, or of it what `max_steps` and the attempt's time allow."""
        spin, training = self._job.settings.spin, self._job.settings.training
        for row in self.rows:  # of an attempt that may have ended before its trackers had them
            self._tell(row, again=True)
        for step in range(self._job.first_step, len(self._batches)):
            if spin.max_steps >= 0 and self.state.step >= spin.max_steps:
                logger.info("max_steps = %d reached", spin.max_steps)
                break
            if self._backend.agree(self._current.out_of_time()):
                self.stopped = True
                self._save(step)
                return
            self._step(step)
            done = step + 1
            if done < len(self._batches):
                self._validate(done)
                if training.save_interval and done % training.save_interval == 0:
                    self._save(done)

    def _step(self, step: int) -> None:
        started = time.monotonic()
        job, training = self._job, self._job.settings.training
        batch = self._batches[step]
        place = job.epoch * len(self._batches) + step
        share = micro_batches(
            batch,
            self._lengths,
            micro_batch_size=training.micro_batch_size,
            rank=self._backend.rank,
            ranks=self._backend.ranks,
            num=training.global_batch_size // (training.micro_batch_size * self._backend.ranks),
        )
        metrics, rewards = train_single_step(
            self._backend,
            self._data,
            share,
            batch=batch,
            objective=self._objective,
            lr=self._learning_rate(place),
            is_step_zero=place == 0,
            where=f"{job.where}, step {step}",
        )
        self.state = self.state.after_step(len(batch))
        self.rewards += [
            PairReward(pair.index, self.state.step, *reward, pair.origin)
            for pair, reward in zip((self._data.pairs[place] for place in batch), rewards, strict=True)
        ]
        self._record(step, metrics, time.monotonic() - started)

    def _learning_rate(self, place: int) -> float:
        training = self._job.settings.training
        return learning_rate(
            training.lr_schedule,
            place,
            num_steps=self._num_updates,
            num_warmup=resolve_count(training.warmup, self._num_updates, at_least=0),
            peak=training.peak_lr(self._job.iteration),
            floor=training.min_lr,
        )

    def _record(self, step: int, metrics: dict[str, float], step_time: float) -> None:
        row = {
            "step": self.state.step,
            "iteration": self._job.iteration,
            "epoch": self._job.epoch,
            **metrics,
            "consumed_samples": self.state.consumed_samples,
            "step_time": round(step_time, 4),
        }
        self.rows.append(row)
        self._tell(row)
        self._progress.update(step + 1)
        logger.info(
            "step %d of %d: loss %.4f, acc %.2f, grad norm %.3g, %.2f pairs/s",
            step + 1,
            len(self._batches),
            metrics["loss"],
            metrics["acc"],
            metrics["grad_norm"],
            len(self._batches[step]) / step_time,
        )

    def _tell(self, row: dict[str, Any], *, again: bool = False) -> None:
        """Send a step's metrics out: as an event, unless that was done before, and to trackers."""
        values = {name: value for name, value in row.items() if name not in ("step", "val_loss")}
        if not again:
            self._current.events.write("metrics", global_step=row["step"], **values)
        if self._current.tracking:
            self._current.tracking.log("train", row["step"], values)
            if again and "val_loss" in row:
                self._current.tracking.log("validation", row["step"], {"val_loss": row["val_loss"]})

    def _validate(self, done: int) -> None:
        """Validation inside the epoch, by `val_check_interval`; the end of the epoch has its own step."""
        settings = self._job.settings.validation
        interval = resolve_count(settings.val_check_interval, len(self._batches))
        if not interval or done % interval:
            return
        if not self._val_batches:
            prompts = self._validation_prompts()
            self._val_batches = validation_batches(prompts, settings)
        self._backend.model.eval()
        val_loss = distributed_val_loss(
            self._backend.model,
            self._val_batches,
            self._backend.compute,
            rank=self._backend.rank,
            ranks=self._backend.ranks,
            reduce=self._backend.reduce_sum,
        )
        self._backend.model.train()
        self.rows[-1]["val_loss"] = val_loss
        self._current.events.write("validation", global_step=self.state.step, val_loss=val_loss)
        if self._current.tracking:
            self._current.tracking.log("validation", self.state.step, {"val_loss": val_loss})
        logger.info("val_loss %.4f after step %d", val_loss, done)

    def _validation_prompts(self) -> list[Prompt]:
        run = self._current.run
        files = {layout.VALIDATION: read_manifest(run, layout.DATA_MANIFEST).outputs[layout.VALIDATION]}
        folder = run.fetch(files, what="the validation data", made_by=layout.DATA_MANIFEST)
        return read_rows(folder / layout.VALIDATION, Prompt)

    def _save(self, done: int) -> None:
        save_partial(self._current, self._job, self._backend, self.state, self.rows, self.rewards, done)
