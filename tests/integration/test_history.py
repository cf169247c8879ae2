"""History pairs are trained on again, and scored again under the current reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from spin_components.algorithm.loss import STEP_ZERO_TOLERANCE
from spin_components.data.shards import Pair, PairReward, Score, read_rows, write_rows
from spin_components.errors import DataError, InputsChangedError, IntegrityError, StepZeroError
from spin_components.ref_logprob.step import score_shard
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import read_manifest
from spin_components.train_epoch.step import train
from spin_pipeline.runs.status import read_status
from support.playing import begin, hardware, losses, play_iteration, play_scores

MakeSettings = Callable[..., Settings]
SCORES = layout.ref_logprobs(1, 0)
OLD = layout.generations(0, 0)


@dataclass(frozen=True)
class Begun:
    """A run whose second iteration is scored but not trained.

    Attributes:
        reference: of iteration 1.
    """

    settings: Settings
    run: LocalRun
    reference: str
    scores: list[str]

    def rows(self, iteration: int) -> list[Score]:
        return read_rows(self.run.path(layout.ref_logprobs(iteration, 0)), Score)

    def rewrite(self, key: str, rows: list[Score] | list[Pair]) -> None:
        """Replace a file and its digest in the manifest, as if the step had written other content."""
        with self.run.staged(key) as staged:
            write_rows(staged.path, type(rows[0]), rows)  # type: ignore[type-var]
        made_by = layout.manifest_of(key)
        manifest = read_manifest(self.run, made_by).model_copy(update={"outputs": staged.outputs})
        self.run.write_json(made_by, manifest.model_dump(mode="json"))

    def train(self) -> str:
        return train(self.settings.run.uri, 1, 0, self.reference, self.scores, hardware(self.settings))

    def score(self) -> str:
        generations = self.run.uri_of(layout.generations(1, 0))
        return score_shard(self.settings.run.uri, 1, 0, self.reference, generations, hardware(self.settings))


@pytest.fixture
def begun(make_settings: MakeSettings) -> Begun:
    """A run with history = 1, the default."""
    settings = make_settings(
        data={"max_train_records": 12}, generation={"max_new_tokens": 6}, spin={"max_iterations": 2}
    )
    reference = play_iteration(settings, 0, begin(settings))
    scores = play_scores(settings, 1, reference)
    return Begun(settings, LocalRun(Path(settings.run.uri)), reference, scores)


def test_history_pairs_scored_by_the_old_reference_stop_the_run_at_step_zero(begun: Begun) -> None:
    # planted mistake: pairs of iteration 0 keep the scores of iteration 0's reference
    stale = {score.key: score for score in begun.rows(0)}
    rows = begun.rows(1)
    assert any(row.origin == 0 for row in rows)
    kept = [
        replace(row, ref_actual=stale[row.key].ref_actual, ref_generated=stale[row.key].ref_generated)
        if row.origin == 0
        else row
        for row in rows
    ]
    assert kept != rows
    begun.rewrite(SCORES, kept)
    with pytest.raises(StepZeroError, match="iteration 1, epoch 0, step 0: the first loss"):
        begun.train()


def test_history_pairs_scored_by_the_current_reference_start_at_ln_2(begun: Begun) -> None:
    first = len(losses(begun.run))
    play_iteration(begun.settings, 1, begun.reference)
    assert losses(begun.run)[first] == pytest.approx(math.log(2), abs=STEP_ZERO_TOLERANCE["float32"])
    facts = read_manifest(begun.run, layout.manifest_of(SCORES)).facts
    counts = {name: value for name, value in facts.items() if not name.startswith("sampler_")}
    rewards = read_rows(begun.run.path(layout.rewards(1, 0)), PairReward)
    assert sorted((row.origin, row.index) for row in rewards) == sorted(row.key for row in begun.rows(1))
    assert sum(row.origin == 0 for row in rewards) == counts["num_history"] > 0
    # numbers of steps: 2 for 12 pairs in batches of 8, 3 for up to 24 pairs
    state = read_manifest(begun.run, layout.epoch_manifest(1, 0)).facts["state"]
    assert state["steps_per_epoch"] == [2, math.ceil(counts["num_pairs"] / 8)] == [2, 3]
    row = read_status(begun.run.uri).iterations[1].model_dump(mode="json")
    assert {name: row[name] for name in counts} == counts


def test_a_shard_with_changed_older_generations_is_refused(begun: Begun) -> None:
    assert begun.score() == begun.scores[0]  # reused
    pairs = read_rows(begun.run.path(OLD), Pair)
    begun.rewrite(OLD, [replace(pair, generated_ids=[*pair.generated_ids, 7]) for pair in pairs])
    with pytest.raises(InputsChangedError, match="generations of iteration 0 was "):
        begun.score()
    with pytest.raises(IntegrityError, match=rf"{OLD} is not what {SCORES} was made from.*or delete {SCORES[:-7]}json"):
        begun.train()


def test_altered_older_generations_are_detected_before_they_are_used(begun: Begun) -> None:
    content = bytearray(begun.run.path(OLD).read_bytes())
    content[len(content) // 2] ^= 1
    begun.run.path(OLD).write_bytes(content)
    with pytest.raises(IntegrityError, match=OLD):
        begun.train()
    begun.run.delete(layout.manifest_of(SCORES))
    with pytest.raises(IntegrityError, match=OLD):
        begun.score()


def test_scores_without_a_generated_pair_are_refused(begun: Begun) -> None:
    rows = begun.rows(1)
    begun.rewrite(SCORES, [replace(rows[0], origin=3), *rows[1:]])
    with pytest.raises(IntegrityError, match="are of other pairs than"):
        begun.train()


def test_dropping_cut_answers_when_all_are_cut_is_an_error(make_settings: MakeSettings) -> None:
    settings = make_settings(generation={"max_new_tokens": 1, "on_truncated": "drop"}, spin={"max_similarity": 0.9})
    reference = begin(settings)
    scores = play_scores(settings, 0, reference)
    facts = read_manifest(LocalRun(Path(settings.run.uri)), layout.manifest_of(layout.ref_logprobs(0, 0))).facts
    assert facts["num_dropped"] == sum(facts["dropped"].values()) == 20
    counts = f"{facts['dropped']['truncated']} cut"
    with pytest.raises(
        DataError, match=rf"all 20 pairs of iteration 0 were dropped: .*{counts} .generation.on_truncated"
    ):
        train(settings.run.uri, 0, 0, reference, scores, hardware(settings))
