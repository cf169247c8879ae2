"""The inner loop of training: global batches in a seeded order, metrics, saves and validations between them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

from spin_components.algorithm.batch_division import BatchDivision
from spin_components.algorithm.batching import GlobalBatches, MicroBatch, derive_seed, order_batches
from spin_components.algorithm.logprobs import is_packed
from spin_components.algorithm.schedules import learning_rate, resolve_count
from spin_components.algorithm.token_budget import PairLengths
from spin_components.data.shards import PairReward, Prompt, read_rows
from spin_components.model.scoring import distributed_val_loss, validation_batches
from spin_components.record.training_pairs import TrainingPairs
from spin_components.runtime.step import Step
from spin_components.store import layout
from spin_components.store.manifests import read_manifest
from spin_components.tracking.tracker import branch_of
from spin_components.training.backend import Backend
from spin_components.training.course import Course
from spin_components.training.job import EpochJob
from spin_components.training.saver import Saver
from spin_components.training.saves import Trained, load_rewards, load_rows
from spin_components.training.train_step import StepResult, train_single_step

logger = logging.getLogger(__name__)


class EpochLoop:
    """Trains one epoch on this rank.

    Attributes:
        trained: counters, metrics and rewards of the steps done so far, over the whole epoch.
    """

    def __init__(self, job: EpochJob, backend: Backend, data: TrainingPairs, step: Step, saver: Saver) -> None:
        settings, course = job.settings, Course(job.settings, job.iteration)
        self._saver = saver
        self._job, self._backend, self._data, self._step = job, backend, data, step
        self._course, self._branch = course, branch_of(job.iteration)
        self._batches = epoch_batches(job, data)
        lengths = PairLengths(data.num_packed, data.num_prompt, data.num_longest, data.num_answers)
        self._division = BatchDivision(
            lengths,
            settings.training,
            backend.ranks,
            is_packed=is_packed(backend.model),
            num_tokens=data.num_tokens,
        )
        self._read = data.read(self._own_pairs())
        self._span, self._objective = course.span(len(self._batches)), course.objective
        self._val_interval = resolve_count(settings.validation.val_check_interval, len(self._batches))
        self._val_batches: list[list[Prompt]] = []
        self.trained = Trained(
            state=job.state.begin_iteration(course.iteration, len(self._batches), course.num_epochs),
            rows=load_rows(job),
            rewards=load_rewards(job),
        )
        self._progress = step.progress(len(self._batches), "steps", done=job.first_step)

    def run(self) -> bool:
        """Train the rest of the epoch, at most until `spin.max_steps`.

        Returns: False where the attempt's time ran out first; what was done is saved.
        """
        for row in self.trained.rows:  # of an attempt that may have ended before its trackers had them
            self._track(row)
        max_steps = self._course.max_steps
        for number in range(self._job.first_step, len(self._batches)):
            if 0 <= max_steps <= self.trained.state.step:
                logger.info("max_steps = %d reached", max_steps)
                break
            self._saver.check()
            if self._backend.agree(self._step.out_of_time()):
                if number > self._job.first_step:
                    self._save(number)
                self._saver.wait()
                return False
            self._train(number)
            self._after_step(number + 1)
        return True

    def _share(self, number: int) -> list[MicroBatch]:
        """This rank's micro-batches of the global batch of that number."""
        return self._division.of_rank(self._batches[number], self._backend.rank)

    def _own_pairs(self) -> Iterator[int]:
        """Pairs that this rank will compute, from the first step that is not done."""
        for number in range(self._job.first_step, len(self._batches)):
            for micro in self._share(number):
                yield from micro.pairs

    def _train(self, number: int) -> None:
        """Take one optimizer step, on the global batch of that number."""
        started = time.monotonic()
        job, backend, training = self._job, self._backend, self._job.settings.training
        batch = self._batches[number]  # indices of N pairs
        update = job.epoch * len(self._batches) + number  # of the iteration
        num_before, num_scheduled = self._span  # steps
        result = train_single_step(
            backend,
            self._read,
            self._share(number),
            batch=batch,
            objective=self._objective,
            lr=learning_rate(
                training.lr_schedule,
                num_before + update,
                num_steps=num_scheduled,
                num_warmup=resolve_count(training.warmup, num_scheduled, at_least=0),
                peak=self._course.peak_lr,
                floor=training.min_lr,
            ),
            is_step_zero=update == 0,
            where=f"{job.where}, step {number}",
        )
        self._record(number, result, time.monotonic() - started)

    def _record(self, number: int, result: StepResult, step_time: float) -> None:
        """Add a step's metrics and rewards to those of the epoch, and report them."""
        batch, trained = self._batches[number], self.trained
        trained.state = trained.state.after_step(len(batch))
        if self._course.is_self_play:
            scores = (self._data.scores[i] for i in batch)
            trained.rewards.extend(
                PairReward(score.index, trained.state.step, actual, generated, score.origin)
                for score, (actual, generated) in zip(scores, result.rewards, strict=True)
            )
        row = {
            "step": trained.state.step,
            **self._job.labels,
            **result.metrics,
            "consumed_samples": trained.state.consumed_samples,
            "step_time": round(step_time, 4),
        }
        trained.rows.append(row)
        self._step.events.write("metrics", global_step=row["step"], **_values(row))
        self._track(row)
        self._progress.update(number + 1)
        logger.info(
            "step %d of %d: loss %.4f%s, grad norm %.3g, %.2f %s/s",
            number + 1,
            len(self._batches),
            result.metrics["loss"],
            f", acc {result.metrics['acc']:.2f}" if "acc" in result.metrics else "",
            result.metrics["grad_norm"],
            len(batch) / step_time,
            "pairs" if self._course.is_self_play else "answers",
        )

    def _track(self, row: dict[str, Any]) -> None:
        """Send the metrics of one step to the trackers."""
        self._step.track("train", row["step"], _values(row), self._branch)
        if "val_loss" in row:
            self._step.track("validation", row["step"], {"val_loss": row["val_loss"]}, self._branch)

    def _after_step(self, done: int) -> None:
        """Validate and save, each at its interval; the end of the epoch has a validation and a save of its own."""
        save_interval = self._job.settings.training.save_interval
        if done == len(self._batches):
            return
        if self._val_interval and done % self._val_interval == 0:
            self._validate(done)
        if save_interval and done % save_interval == 0:
            self._save(done)

    def _validate(self, done: int) -> None:
        """Measure the policy's loss on the held-out answers, and report it with the step's metrics."""
        val_loss = self.held_out_loss()
        self.trained.rows[-1]["val_loss"] = val_loss
        global_step = self.trained.state.step
        self._step.events.write("validation", global_step=global_step, val_loss=val_loss)
        self._step.track("validation", global_step, {"val_loss": val_loss}, self._branch)
        logger.info("val_loss %.4f after step %d", val_loss, done)

    def held_out_loss(self) -> float:
        """Compute the policy's loss on the held-out answers; every rank calls it."""
        backend = self._backend
        if not self._val_batches:
            self._val_batches = validation_batches(self._read_prompts(), self._job.settings.validation)
        backend.model.eval()
        val_loss = distributed_val_loss(
            backend.model,
            self._val_batches,
            backend.compute,
            rank=backend.rank,
            ranks=backend.ranks,
            reduce=backend.reduce_sum,
        )
        backend.model.train()
        return val_loss

    def _read_prompts(self) -> list[Prompt]:
        run = self._step.run
        files = {layout.VALIDATION: read_manifest(run, layout.DATA_MANIFEST).outputs[layout.VALIDATION]}
        folder = run.fetch(files, what="the validation data", made_by=layout.DATA_MANIFEST)
        return read_rows(folder / layout.VALIDATION, Prompt)

    def _save(self, done: int) -> None:
        self._saver.save_partial(self.trained, done)


def epoch_batches(job: EpochJob, data: TrainingPairs) -> GlobalBatches:
    """The epoch's global batches in their order: the same for every rank, backend and attempt."""
    seed = derive_seed(job.settings.run.seed, "order", job.iteration, job.epoch)
    limit = resolve_count(job.settings.training.limit_train_batches, len(data.batches))
    return data.batches.ordered(order_batches(len(data.batches), seed, limit))


def _values(row: dict[str, Any]) -> dict[str, Any]:
    """What events and trackers get of a step's metrics, besides its number."""
    return {name: value for name, value in row.items() if name not in ("step", "val_loss")}
