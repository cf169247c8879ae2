from __future__ import annotations

import pytest

from spin_components.record.bootstrap import Difference
from spin_components.record.controls import Controlled, verdict_of

BETTER, WORSE, UNCLEAR = (
    Difference(-0.2, -0.3, -0.1, 9, 10),
    Difference(0.2, 0.1, 0.3, 1, 10),
    Difference(0.1, -0.1, 0.3, 6, 10),
)


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("val_loss", BETTER, "better"),  # a lower loss
        ("val_loss", WORSE, "worse"),
        ("repetition", WORSE, "worse"),  # more repeated 4-grams
        ("chrf", WORSE, "better"),  # a higher likeness
        ("ended", BETTER, "worse"),
        ("match", UNCLEAR, "no clear change"),
    ],
)
def test_the_verdict_of_a_measure_follows_its_direction(name: str, change: Difference, word: str) -> None:
    assert verdict_of(name, change) == word


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"val_loss": BETTER}, "did better by val_loss −0.200 (−0.300 to −0.100), and worse by no measure."),
        ({"val_loss": WORSE}, "did worse by val_loss +0.200 (+0.100 to +0.300), and better by no measure."),
        ({"val_loss": UNCLEAR}, "did neither better nor worse; no clear change: val_loss +0.100 (−0.100 to +0.300)."),
        (
            {"val_loss": WORSE, "chrf": WORSE, "match": UNCLEAR},
            "did better by chrF of greedy answers +0.200 (+0.100 to +0.300), but worse by val_loss +0.200 "
            "(+0.100 to +0.300); no clear change: match of greedy answers +0.100 (−0.100 to +0.300).",
        ),
    ],
)
def test_the_sentence_says_where_self_play_did_better_and_where_not(changes: dict[str, Difference], text: str) -> None:
    as_many = Controlled(1, 12, 12, changes).sentence
    assert as_many == (f"Against as many (12) updates of supervised fine-tuning, self-play up to iteration 1 {text}")
    fewer = Controlled(1, 8, 12, changes).sentence
    assert fewer.startswith(
        "Against 8 updates of supervised fine-tuning, self-play up to iteration 1 (12 updates) did "
    )


def test_too_few_answers_are_no_verdict() -> None:
    assert Controlled(0, 4, 4, {}).sentence == "Too few answers are known to compare iteration 0 with its control."
