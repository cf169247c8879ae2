"""What an epoch trains on and by which schedule: an iteration, the warm-up, or the control of an iteration."""

from __future__ import annotations

from dataclasses import dataclass, replace

from spin_components.algorithm.batching import derive_seed, form_batches
from spin_components.algorithm.loss import Objective
from spin_components.data.pair_counts import PairCounts
from spin_components.data.shards import Pair, Prompt, read_rows
from spin_components.record.pairs import ScoredPairs, load_scored_pairs
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import read_manifest


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
        options = self.settings.objective.model_dump() if self.is_self_play else {"loss": "sft"}
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

    def load(self, run: RunStore) -> ScoredPairs:
        """Read and verify what it trains on.

        Without self-play the pairs have no generated answers, and there are no scores. A control has the pairs of its
        iteration, in the same batches.

        Raises:
            DataError, IntegrityError: see `load_scored_pairs`.
        """
        if self.is_warm_up:
            return _human_answers(run, self.settings)
        data = load_scored_pairs(run, self.iteration)
        if self.is_self_play:
            return data
        return replace(data, pairs=[replace(pair, generated_ids=[]) for pair in data.pairs], scores=[])


def _human_answers(run: RunStore, settings: Settings) -> ScoredPairs:
    """All training prompts with their human answers, in global batches."""
    manifest = read_manifest(run, layout.DATA_MANIFEST)
    keys = [layout.train_shard(shard) for shard in range(int(manifest.facts["num_shards"]))]
    files = {key: manifest.outputs[key] for key in keys}
    folder = run.fetch(files, what="the training data", made_by=layout.DATA_MANIFEST)
    prompts = (prompt for key in keys for prompt in read_rows(folder / key, Prompt))
    pairs = [Pair(prompt.index, prompt.prompt_ids, prompt.actual_ids, [], "") for prompt in prompts]
    seed = derive_seed(settings.run.seed, "batches", layout.WARM_UP)
    batches = form_batches(len(pairs), settings.training.global_batch_size, seed)
    return ScoredPairs(pairs, [], batches, PairCounts(num_pairs=len(pairs)))
