from __future__ import annotations

from typing import Any

import pytest

from spin_components.store.layout import BASE
from spin_pipeline.watch.model import RunModel
from spin_pipeline.watch.steps import rows
from spin_pipeline.watch.view import Frame, draw
from support.made_events import event, generated, prepared, published, trained, validated


def drawn(
    events: list[dict[str, Any]], width: int = 100, height: int = 50, now: float = 30.0, **frame: Any
) -> list[str]:
    """The drawn lines as plain text."""
    model = RunModel()
    model.apply(events)
    lines = draw(model, Frame("runs/tiny", now, "running", **frame), width, height)
    assert len(lines) <= height
    assert all(line.cell_len <= width for line in lines), [line.plain for line in lines]
    return [line.plain.rstrip() for line in lines]


HALFWAY = [*prepared(), *validated(3.0, BASE, 6.5), *generated(5.0, 0), *trained(10.0, 0, {1: 0.6931, 2: 0.5})]


def line_with(lines: list[str], text: str) -> str:
    (matching,) = [line for line in lines if text in line]
    return matching


def test_each_step_shows_its_state_summary_and_duration() -> None:
    lines = drawn(HALFWAY, now=14.0)
    assert lines[0].startswith("tiny  runs/tiny")
    assert lines[0].endswith("running, 14 s")
    assert line_with(lines, "prepare").split() == ["✓", "prepare", "32", "prompts,", "16", "held", "out", "2.0", "s"]
    assert "✓ generate" in line_with(lines, "4 answers, 50 tokens/s, transformers")
    assert line_with(lines, "train-epoch").endswith("4.0 s")
    assert line_with(lines, "checkpoint").split() == ["·", "checkpoint"]
    assert "· iteration 1" in lines


def test_a_bar_grows_with_progress() -> None:
    lengths = []
    for done in (1, 2, 4):
        progress = event(12.0, "progress", "train-epoch", 0, 0, done=done, total=4, unit="steps", rate=0.5, eta_s=4.0)
        line = line_with(drawn([*HALFWAY, progress]), "train-epoch")
        assert f"{done}/4 steps" in line
        lengths.append(line.count("━"))
        assert line.count("━") + line.count("─") == 30
    assert lengths == [8, 15, 30]  # of 30: a quarter, a half, all


def test_metrics_show_their_newest_value_and_a_sparkline() -> None:
    lines = drawn(HALFWAY)
    assert "after step 2" in lines
    assert "loss       0.5000 █▁" in line_with(lines, "loss       0.5")
    assert "margin     0.7500 ▁▁" in line_with(lines, "margin")
    assert "val_loss    6.500 ▁  base 6.500" in lines


def test_a_finished_iteration_is_one_line() -> None:
    over = [*HALFWAY, *validated(20.0, 0, 6.0), *published(22.0, 0, 6.0, "continue")]
    assert (
        sum("checkpoint" in line for line in drawn(over)) == 1
    )  # the newest iteration shows its steps until the next one starts
    lines = drawn([*over, *generated(25.0, 1)[:2]])
    assert "✓ iteration 0" in line_with(lines, "val_loss 6.000, acc 0.75")
    assert sum("generate " in line for line in lines) == 1
    assert line_with(lines, "base 6.500").endswith("-0.5000, best: iteration 0")


def test_after_a_roll_back_the_best_model_generates_the_next_answers() -> None:
    decision = {"outcome": "regressed", "next": -1, "iteration_best": -1}
    lines = drawn([*HALFWAY, *published(22.0, 0, None, "roll_back", **decision), *generated(25.0, 1)])
    assert "val_loss not finite, acc 0.75, worse, rolled back" in line_with(lines, "iteration 0 ")
    assert line_with(lines, "base 6.500").endswith("best: the base model")
    assert sum(line.startswith("base  ") for line in lines) == 1  # its sample is shown with the human answer


def test_shards_share_a_line() -> None:
    events = prepared(shards=3) + generated(10.0, 0, 0) + generated(11.0, 0, 1)[:2]
    line = line_with(drawn(events, width=120), "generate ")
    assert "6/8 answers" in line  # 4 of the finished shard, 2 of the running one
    assert "1 of 3 shards" in line


def test_shards_that_prepare_chose_are_counted_once_it_is_done() -> None:
    *begun, done = prepared(shards=0)
    played = generated(10.0, 0, 0)
    chosen = {**done, "facts": {**done["facts"], "num_shards": 3}}
    assert "1 of 3 shards" in line_with(drawn([*begun, chosen, *played], width=120), "generate ")


def test_a_failure_is_shown_in_full_and_a_warning_in_one_line() -> None:
    fail = event(20.0, "fail", "train-epoch", 0, 0, error="NonFiniteError", message="the loss is nan", exit_code=1)
    warning = event(19.0, "warning", "generate", 0, 0, message="4 of 4 answers were cut")
    lines = drawn([*HALFWAY, warning, fail])
    assert "✗ train-epoch" in line_with(lines, "failed")
    assert "NonFiniteError: the loss is nan" in lines
    assert "! iteration 0 generate 0: 4 of 4 answers were cut" in lines


def test_a_sample_is_shown_below_the_human_answer_without_control_characters() -> None:
    events = generated(10.0, 0)
    events[2]["samples"][0] |= {"prompt": "[bold]<script>[/bold]", "generated": "\x1b[2J\x1b[31mred\nand more"}
    lines = drawn([*prepared(), *events])
    assert "prompt        [bold]<script>[/bold]" in lines
    assert "human         2" in lines
    assert "base          ␛[2J␛[31mred ⏎ and more" in lines
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("width", [60, 80, 132])
@pytest.mark.parametrize("height", [6, 12, 24, 60])
@pytest.mark.parametrize("iterations", [1, 20])
def test_any_size_of_terminal_shows_the_header_and_the_running_step(width: int, height: int, iterations: int) -> None:
    events = [*prepared(max_iterations=iterations), *validated(3.0, BASE, 6.5)]
    for t in range(iterations - 1):
        events += [*generated(5.0 + t, t), *published(6.0 + t, t, 6.0 - t / 10, "continue")]
    events += [*generated(40.0, iterations - 1), *trained(42.0, iterations - 1, {1: 0.69, 2: 0.5})]
    events += [event(43.0, "warning", "generate", 0, 0, message="x" * 500)]
    lines = drawn(events, width, height)
    assert lines[0].endswith("30 s")
    assert "2/4 steps" in line_with(lines, "train-epoch")


def test_a_run_without_events_is_drawn() -> None:
    assert drawn([])[0].startswith("run  runs/tiny")


def test_warnings_of_the_viewer_are_shown() -> None:
    assert "storage does not answer" in drawn(HALFWAY, notice="storage does not answer")


def test_iterations_have_the_epochs_that_are_planned_for_each() -> None:
    def trained_in(t: int, max_epochs: int | list[int]) -> list[str]:
        model = RunModel()
        model.apply([*prepared(max_iterations=2, max_epochs=max_epochs), *generated(5.0, t)])
        return [row.label for row in rows(model, 99) if row.label.startswith("train")]

    assert [trained_in(t, [2, 1]) for t in (0, 1)] == [["train-epoch 0", "train-epoch 1"], ["train-epoch"]]
    assert [trained_in(t, 2) for t in (0, 1)] == [["train-epoch 0", "train-epoch 1"]] * 2
    assert trained_in(5, [2, 1]) == ["train-epoch"]  # an iteration beyond the plan of the newest attempt
