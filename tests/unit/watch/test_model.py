from __future__ import annotations

import random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spin_components.store.layout import BASE, WARM_UP, control
from spin_pipeline.watch.model import RunModel
from spin_pipeline.watch.steps import rows
from spin_pipeline.watch.view import Frame, draw
from support.made_events import event, generated, metrics, prepared, published, trained, validated


def model_of(*groups: list[dict[str, Any]]) -> RunModel:
    model = RunModel()
    for group in groups:
        model.apply(group)
    return model


def test_a_step_goes_from_waiting_by_running_to_done() -> None:
    model = model_of(prepared())
    assert model.step("generate", 0, 0).state == "waiting"
    start, progress, _, done = generated(10.0, 0)
    model.apply([start, progress])
    step = model.step("generate", 0, 0)
    assert (step.state, step.started, step.ended) == ("running", 10.0, None)
    assert step.work is not None
    assert (step.work.done, step.work.total, step.work.unit, step.work.eta_s) == (2, 4, "answers", 1.0)
    model.apply([done])
    assert (step.state, step.ended, step.facts["engine"]) == ("done", 12.0, "transformers")
    assert model.running == []


def test_metrics_and_losses_are_stored_by_step_iteration_and_epoch() -> None:
    model = model_of(prepared(), validated(3.0, BASE, 6.5), trained(5.0, 0, {1: 0.69, 2: 0.5}), validated(8.0, 0, 6.0))
    assert {step: row["loss"] for step, row in model.metrics.items()} == {1: 0.69, 2: 0.5}
    assert model.base_val_loss == 6.5
    assert model.validated == {(0, 0): 6.0}
    model.apply([event(7.5, "validation", "train-epoch", 0, 0, global_step=2, val_loss=6.2)])
    assert model.val_losses == {2: 6.2}


def test_a_step_that_is_trained_again_replaces_its_metrics() -> None:
    model = model_of(prepared(), trained(5.0, 0, {1: 0.69, 2: 0.5}), prepared(20.0), trained(25.0, 0, {2: 0.4}))
    assert {step: row["loss"] for step, row in model.metrics.items()} == {1: 0.69, 2: 0.4}


def test_a_warm_up_is_one_step_whose_epochs_and_metrics_are_counted_apart() -> None:
    def written(time: float, kind: str, **fields: Any) -> dict[str, Any]:
        return {"time": time, "kind": kind, "step": "warm-up", **fields}

    epochs = [{"val_loss": 6.0}, {"val_loss": 5.5}]
    whole = {"epoch": 1, "epochs": epochs, "num_steps": 8, "val_loss": 5.5}
    model = model_of(prepared(), [written(3.0, "start")])
    for number, epoch in enumerate(epochs):
        model.apply(
            [
                written(4.0 + number, "progress", epoch=number, done=4, total=4, unit="steps"),
                written(4.0 + number, "metrics", epoch=number, global_step=4, loss=5.9),
                written(4.5 + number, "done", epoch=number, facts={"num_steps": 4, **epoch}),
            ]
        )
        assert model.step("warm-up").state == "running", "another epoch may follow"
    model.apply([written(7.0, "done", facts=whole)])
    assert model.step("warm-up").state == "done"
    assert model.metrics == {}
    assert model.references[0] == WARM_UP
    (row,) = [row for row in rows(model, 40) if row.label == "warm-up"]
    assert row.note == "8 steps in 2 epochs, val_loss 5.500, epoch 1 kept"


def test_a_control_belongs_to_its_iteration_and_not_to_its_state() -> None:
    model = model_of(prepared(), trained(5.0, 0, {1: 0.69}), published(8.0, 0, 6.0, "continue"))
    progress = event(9.5, "progress", "control", 0, done=1, total=4, unit="steps")
    model.apply([event(9.0, "start", "control", 0), progress])
    assert model.step("control", 0).state == "running"
    assert [row.state for row in rows(model, 40) if row.label == "iteration 0"] == ["done"]
    assert [row.label for row in rows(model, 40)].count("control") == 1


def test_a_new_attempt_interrupts_the_steps_of_the_previous_one() -> None:
    fail = event(9.0, "fail", "generate", 0, 0, error="EngineError", message="no", exit_code=1)
    model = model_of(prepared(), trained(5.0, 0, {1: 0.69}), [fail])
    assert model.outcome == "failed"
    model.apply(prepared(60.0))
    assert model.attempts == 2
    assert model.started == 60.0
    assert model.outcome == ""
    assert model.step("train-epoch", 0, 0).state == "interrupted"
    assert model.step("generate", 0, 0).state == "waiting"
    assert model.step("prepare").state == "done"


def test_a_failed_step_that_succeeds_on_retry_is_done() -> None:
    fail = event(9.0, "fail", "generate", 0, 0, error="EngineError", message="no", exit_code=1)
    model = model_of(prepared(), generated(5.0, 0)[:1], [fail])
    assert model.step("generate", 0, 0).state == "failed"
    model.apply(generated(15.0, 0))
    assert model.failure is None
    assert model.step("generate", 0, 0).state == "done"


def test_an_evaluation_that_fails_ends_the_run_only_once_training_has() -> None:
    fail = event(10.0, "fail", "evaluate", 0, error="EngineError", message="no answer", exit_code=1)
    start = event(9.5, "start", "evaluate", 0)
    model = model_of(prepared(), published(9.0, 0, 6.0, "continue"), [start, fail])
    assert (model.outcome, model.step("evaluate", 0).state) == ("", "failed")
    lines = [line.plain for line in draw(model, Frame("u", 11.0, "running", ""), 100, 60)]
    assert any("evaluate" in line and "failed" in line for line in lines)
    model.apply(published(19.0, 1, 5.5, "done"))
    assert model.outcome == "failed"
    again = [
        event(20.0, "start", "evaluate", 0),
        event(21.0, "done", "evaluate", 0, facts={"judge": {"mean": 7.0, "stderr": None}}),
    ]
    model.apply(again)
    assert model.outcome == "done"


def test_the_decision_of_the_last_checkpoint_ends_the_run() -> None:
    model = model_of(prepared(), published(9.0, 0, 6.0, "continue"))
    before = model.is_over
    model.apply(published(19.0, 1, 5.5, "done"))
    assert (before, model.is_over) == (False, True)
    assert (model.best, model.decisions, model.outcome) == (1, {0: "continue", 1: "done"}, "done")


def test_after_a_roll_back_the_run_is_not_over_and_its_reference_is_known() -> None:
    rolled: dict[str, Any] = {
        "decision": "roll_back",
        "outcome": "regressed",
        "reason": "x",
        "next": -1,
        "iteration_best": -1,
    }
    model = model_of(prepared(), [event(9.0, "published", "checkpoint", 0, val_loss=None, **rolled)])
    assert (model.best, model.references[1], model.outcomes, model.is_over) == (-1, -1, {0: "regressed"}, False)
    model.apply([event(10.0, "done", "validate", 1, 0, facts={"val_loss": None}, duration_s=1.0)])
    assert (model.step("validate", 1, 0).state, model.validated) == ("done", {})


def test_a_stop_is_not_a_failure() -> None:
    model = model_of(prepared(), [event(5.0, "stop", "generate", 0, 0, reason="max_time")])
    assert (model.outcome, model.stop_reason, model.failure) == ("stopped", "max_time", None)


def test_the_same_warning_is_kept_once_and_counted() -> None:
    warning = event(5.0, "warning", "generate", 0, 0, message="8 answers were cut")
    model = model_of([warning, warning, {**warning, "message": "other"}])
    assert [(warned.message, warned.count) for warned in model.warnings] == [("8 answers were cut", 2), ("other", 1)]


def test_the_newest_samples_have_their_iteration() -> None:
    model = model_of(prepared(), generated(5.0, 0), generated(15.0, 1))
    assert model.samples_iteration == 1
    assert model.samples[0]["generated"] == "3"


def test_events_of_several_shards_may_come_in_any_order() -> None:
    groups = [generated(10.0 + shard, 0, shard) for shard in range(4)]
    events = sorted((each for group in groups for each in group), key=lambda each: (each["time"], random.random()))
    model = model_of(prepared(shards=4), events)
    assert [model.step("generate", 0, shard).state for shard in range(4)] == ["done"] * 4


def test_malformed_and_unknown_events_are_skipped() -> None:
    odd: list[dict[str, Any]] = [
        {"time": 1.0},
        {"time": 1.0, "kind": "progress", "step": "generate"},
        {"time": 1.0, "kind": "metrics", "step": 7, "loss": "low"},
        {"time": 1.0, "kind": "metrics", "step": "train-epoch", "global_step": "many"},
        {"time": "soon", "kind": "start", "step": "prepare"},
        {"time": 1.0, "kind": "of a later version", "step": "prepare", "iteration": None},
        {"time": 1.0, "kind": "samples", "step": "generate", "iteration": 0, "samples": [5]},
        {"time": 1.0, "kind": "done", "step": "validate", "iteration": 0, "facts": None},
    ]
    model = model_of(odd, prepared(2.0), [metrics(9.0, 1, 0.5)])
    assert model.step("prepare").state == "done"
    assert list(model.metrics) == [1]


VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, -1, 0, 3, 2.5, float("nan"), float("inf"), "", "train-epoch", "7", [1], [], {}]
)
KINDS = (
    *("start", "plan", "progress", "transfer", "metrics", "validation", "samples", "warning"),
    *("reuse", "done", "published", "stop", "fail", "of another version"),
)
NAMES = ("time", "step", "iteration", "epoch", "shard", "done", "total", "facts", "samples", "global_step", "message")


@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6)), max_size=6)
)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_no_event_raises_an_error_in_the_view(events: list[tuple[str, dict[str, Any]]]) -> None:
    model = model_of(prepared(), [{"kind": kind, **fields} for kind, fields in events])
    frame = Frame("runs/tiny", 10.0, "running")
    assert all(line.cell_len <= 80 for line in draw(model, frame, 80, 40))


def test_an_evaluation_that_a_verdict_waits_for_stands_before_it_and_ends_the_attempt_where_it_fails() -> None:
    model = model_of(prepared(decides=True), [event(9.5, "start", "evaluate", 0)])
    labels = [row.label for row in rows(model, 30)]
    assert labels.index("evaluate") < labels.index("checkpoint")
    model.apply([event(10.0, "fail", "evaluate", 0, error="EngineError", message="no answer", exit_code=1)])
    assert model.outcome == "failed"
    model = model_of(prepared(decides=True), [event(9.5, "start", "evaluate", control(0))])
    model.apply([event(10.0, "fail", "evaluate", control(0), error="EngineError", message="no answer", exit_code=1)])
    assert model.outcome == "", "nothing waits for that of a control"
