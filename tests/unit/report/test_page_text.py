"""Text of the report without a browser: verdicts, warnings, numbers, escapes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from spin_components.data.pair_counts import PairCounts
from spin_components.record.bootstrap import Difference, UnpairedDifference
from spin_components.record.controls import signed
from spin_components.record.history import EpochHistory, History, IterationHistory
from spin_components.report.lineage import costs, duration, sampler_facts, settings_tables
from spin_components.report.page import about_pairs, embedded_json, render
from spin_components.report.samples import _shared_ends
from spin_components.report.verdict import by_measure, compute_verdict, perplexity
from spin_components.report.warnings import find_warnings
from spin_components.settings.settings import Settings
from spin_components.store.layout import BASE, WARM_UP
from spin_components.store.manifests import Manifest

SETTINGS = Settings.model_validate(
    {"model": {"base": "a"}, "data": {"train": "b"}, "generation": {"max_new_tokens": 32}, "training": {"lr": 1e-3}}
)
SAMPLED = {
    "num_samples": 8,
    "mean_sampled_tokens": 21.5,
    "length_ratio": 1.1,
    "repetition_rate": 0.05,
    "distinct_1": 0.5,
    "distinct_2": 0.9,
    "cut_share": 0.25,
}
DATA = {"num_train": 100, "num_validation": 50, "num_prompts_cut": 0, "num_answers_cut": 0, "num_bad_records": 0}


def generations(**facts: Any) -> Manifest:
    defaults = {
        "num_pairs": 100,
        "num_empty": 0,
        "num_identical": 0,
        "finish_reasons": {"stop": 100},
        "mean_actual_tokens": 20.0,
        "mean_generated_tokens": 22.0,
    }
    return Manifest(
        step="generate", inputs={}, facts={**defaults, **facts}, duration_s=7200.0, machine={"num_cores": 4}
    )


def iteration(
    number: int, val_loss: float | None, decided: dict[str, Any] | None = None, **facts: Any
) -> IterationHistory:
    trained = Manifest(
        step="train-epoch",
        inputs={},
        facts={"num_steps": 10},
        duration_s=1800.0,
        machine={"num_cores": 16, "num_gpus": 8, "gpu": "NVIDIA H100"},
    )
    checkpoint = {"iteration": number, "epoch": 0, "val_loss": val_loss, **(decided or {})}
    published = Manifest(step="checkpoint", inputs={}, facts=checkpoint)
    return IterationHistory(number, [(generations(**facts), None)], [EpochHistory(0, trained, None)], published)


def history(*iterations: IterationHistory, base: float | None = 4.0, **data: Any) -> History:
    check = None if base is None else Manifest(step="validate", inputs={}, facts={"val_loss": base})
    record = {"settings": SETTINGS.model_dump(mode="json")}
    manifest = Manifest(step="prepare", inputs={}, facts={**DATA, **data})
    return History("run", record, manifest, check, list(iterations))


def steps(
    number: int, *, loss: float = 0.4, acc: float = 0.8, actual: float = 0.3, generated: float = -0.3
) -> list[Any]:
    row = {"loss": loss, "acc": acc, "rewards_actual_mean": actual, "rewards_generated_mean": generated}
    return [{"iteration": number, **row}] * 8


@pytest.mark.parametrize(
    ("difference", "kind", "headline"),
    [
        (Difference(-0.5, -0.7, -0.3, 40, 48), "better", "Iteration 1 is better than the base model."),
        (
            Difference(-0.1, -0.3, 0.1, 30, 48),
            "unclear",
            "Iteration 1 is not significantly different from the base model.",
        ),
        (Difference(0.4, 0.1, 0.7, 3, 48), "worse", "No iteration is better than the base model."),
    ],
)
def test_the_verdict_follows_the_interval_of_the_best_iteration(
    difference: Difference, kind: str, headline: str
) -> None:
    run = history(iteration(0, 3.9), iteration(1, 3.5), iteration(2, 3.6))
    verdict = compute_verdict(run, {0: Difference(9, 9, 9, 0, 48), 1: difference})
    assert (verdict.kind, verdict.headline, verdict.iteration) == (kind, headline, 1)
    assert "fell from 4.000 to 3.500 nats per token" in verdict.detail
    assert f"from {signed(difference.low)} to {signed(difference.high)} over 48 answers" in verdict.detail


def test_without_losses_of_single_answers_there_is_no_interval() -> None:
    verdict = compute_verdict(history(iteration(0, 3.5)), {})
    assert (verdict.kind, verdict.difference) == ("better", None)
    assert "there is no confidence interval" in verdict.detail


REGRESSED = {"outcome": "regressed", "decision": "roll_back", "reason": "val_loss +0.5 against iteration 0", "next": 0}


def test_without_a_better_iteration_the_best_one_is_compared() -> None:
    run = history(iteration(0, 4.3), iteration(1, 4.1), iteration(2, None, REGRESSED))
    verdict = compute_verdict(run, {0: Difference(9, 9, 9, 0, 48), 1: Difference(0.1, -0.1, 0.3, 20, 48)})
    assert (verdict.kind, verdict.headline) == ("worse", "No iteration is better than the base model.")
    assert (verdict.iteration, verdict.compared, verdict.compared_loss) == (BASE, 1, 4.1)
    assert "rose from 4.000 to 4.100 nats per token in iteration 1, the best one: a change of +0.1" in verdict.detail
    nothing = compute_verdict(history(iteration(0, None, REGRESSED)), {})
    assert (nothing.kind, nothing.iteration, nothing.detail) == ("worse", BASE, "No iteration's loss is finite.")


def test_a_regressed_iteration_is_not_the_best() -> None:
    run = history(iteration(0, 3.9), iteration(1, 3.0, REGRESSED))
    verdict = compute_verdict(run, {0: Difference(-0.1, -0.2, -0.05, 40, 48)})
    assert (verdict.iteration, verdict.kind) == (0, "better")


DRIFTED = {"outcome": "drifted", "decision": "continue", "reason": "length_ratio 3.2 is not within 2", "next": 1}


def test_a_drifted_iteration_of_a_lower_loss_is_not_better_and_the_reason_is_given() -> None:
    run = history(iteration(0, 3.0, DRIFTED))
    verdict = compute_verdict(run, {0: Difference(-1.0, -1.2, -0.8, 40, 48)})
    assert (verdict.iteration, verdict.headline) == (BASE, "No iteration is better than the base model.")
    assert verdict.detail.endswith("over 48 answers. It has drifted: length_ratio 3.2 is not within 2.")
    (warning,) = find_warnings(run, [])
    assert warning.startswith("Iteration 0 has drifted: length_ratio 3.2 is not within 2. The next iteration started")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (Difference(2.0, 1.0, 3.0, 30, 48), "better"),
        (Difference(2.0, -1.0, 5.0, 30, 48), "unclear"),
        (Difference(-2.0, -3.0, -1.0, 3, 48), "worse"),
        (None, "unclear"),
    ],
)
def test_the_verdict_follows_the_measure_that_decides(change: Difference | None, kind: str) -> None:
    run = history(iteration(0, 3.0, {"best": 0}))
    by_loss = compute_verdict(run, {0: Difference(-1.0, -1.2, -0.8, 40, 48)})
    verdict = by_measure(run, by_loss, "chrf of greedy answers", True, {0: change} if change else {})
    assert (verdict.kind, verdict.iteration) == (kind, 0)
    assert verdict.detail.endswith(by_loss.detail)
    run = history(iteration(0, 3.0, {"best": BASE}))
    rejected = compute_verdict(run, {0: Difference(-1.0, -1.2, -0.8, 40, 48)})
    assert (
        by_measure(run, rejected, "chrf of greedy answers", True, {0: Difference(2.0, 1.0, 3.0, 30, 48)}).kind
        == "worse"
    )


def test_a_measure_of_which_lower_is_better_decides_by_its_fall() -> None:
    run = history(iteration(0, 3.0, {"best": 0}))
    by_loss = compute_verdict(run, {0: Difference(-1.0, -1.2, -0.8, 40, 48)})
    fell = UnpairedDifference(-2.0, -3.0, -1.0, 0, 48)
    verdict = by_measure(run, by_loss, "arc perplexity", False, {0: fell})
    assert verdict.kind == "better"
    assert verdict.detail.startswith(
        "arc perplexity decides: a change of −2.000, with a 95 % confidence interval from −3.000 to −1.000 over 48 "
        "documents, by standard errors, not paired."
    )


def warmed(*iterations: IterationHistory, val_loss: float) -> History:
    """A run whose warm-up had one epoch."""
    plain = history(*iterations)
    facts = {"epoch": 0, "val_loss": val_loss, "base_val_loss": 4.0}
    manifests = [Manifest(step="warm-up", inputs={}, facts=facts) for _ in range(3)]
    warm_up = IterationHistory(WARM_UP, [], [EpochHistory(0, manifests[0], manifests[1])], manifests[2])
    return replace(plain, warm_up=warm_up)


def test_the_verdict_is_on_self_play_and_not_on_the_warm_up_before_it() -> None:
    better = warmed(iteration(0, 2.8, {"best": 0}), val_loss=3.0)
    verdict = compute_verdict(better, {0: Difference(-0.2, -0.3, -0.1, 40, 48)})
    assert verdict.headline == "Iteration 0 is better than the warm-up."
    assert verdict.detail.startswith("The loss on held-out human answers fell from 3.000 to 2.800 nats per token")
    assert verdict.detail.endswith("The warm-up before it brought the loss from 4.000 to 3.000.")
    worse = warmed(iteration(0, 3.2, {"best": WARM_UP}), val_loss=3.0)
    verdict = compute_verdict(worse, {0: Difference(0.2, 0.1, 0.3, 3, 48)})
    assert (verdict.kind, verdict.iteration) == ("worse", WARM_UP)
    assert verdict.headline == "No iteration is better than the warm-up."


def test_the_best_is_that_of_the_newest_judgement() -> None:
    run = history(iteration(0, 3.9, {"best": 0}), iteration(1, 3.5, {"outcome": "unclear", "best": 0}))
    assert run.best == 0  # by another measure than val_loss


def test_the_verdict_is_open_before_a_checkpoint() -> None:
    assert compute_verdict(history(), {}).kind == "open"
    assert compute_verdict(history(iteration(0, 3.5), base=None), {}).iteration is None


def test_a_run_without_problems_has_no_warnings() -> None:
    run = history(iteration(0, 3.9), iteration(1, 3.5))
    assert find_warnings(run, [*steps(0), *steps(1)]) == []


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (
            {"finish_reasons": {"stop": 70, "length": 30}},
            "30\N{NO-BREAK SPACE}% of the generated answers of iteration 0",
        ),
        ({"num_identical": 6}, "6\N{NO-BREAK SPACE}% of the generated answers of iteration 0 are identical"),
        ({"num_empty": 2}, "2 of 100 generated answers of iteration 0 are empty"),
        ({"mean_generated_tokens": 41.0}, "much longer than the human answers (mean 41 and 20 tokens)"),
        ({"mean_generated_tokens": 9.0}, "much shorter than the human answers (mean 9 and 20 tokens)"),
    ],
)
def test_answers_that_are_easy_to_distinguish_are_warned_of(facts: dict[str, Any], expected: str) -> None:
    (warning,) = find_warnings(history(iteration(0, 3.9, **facts)), steps(0))
    assert expected in warning


def test_saturated_margins_and_negative_rewards_are_warned_of() -> None:
    run = history(iteration(0, 3.9))
    (saturated,) = find_warnings(run, [*steps(0)[:6], *steps(0, loss=0.01, acc=1.0)[:2]])
    assert "Margins of iteration 0 are saturated: over its last 2 steps the mean loss is 0.010" in saturated
    (falling,) = find_warnings(run, steps(0, actual=-0.4, generated=-1.25))
    assert "Rewards of both kinds of answers are negative in iteration 0 (human -0.40, generated -1.25)" in falling


def test_a_rising_loss_and_truncated_data_are_warned_of() -> None:
    run = history(iteration(0, 3.5), iteration(1, 3.6), num_answers_cut=1200)
    cut, rose = find_warnings(run, [])
    assert cut.startswith("1,200 human answers were truncated")
    assert rose == "val_loss rose in iteration 1, from 3.500 to 3.600."


def test_warnings_that_prepare_recorded_are_passed_on() -> None:
    run = history(iteration(0, 3.9), warnings=["the model has no chat template"])
    assert find_warnings(run, steps(0)) == ["The model has no chat template."]


def test_regression_and_repetition_are_warned_of() -> None:
    run = history(iteration(0, 3.5), iteration(1, 4.0, REGRESSED), iteration(2, 3.6, {"repetition_rate": 0.5}))
    assert run.base is not None
    run.base.facts["repetition_rate"] = 0.1
    regressed, rose, repeats = find_warnings(run, [])
    assert regressed.startswith("Iteration 1 is worse: val_loss +0.5 against iteration 0. The next iteration started")
    assert rose == "val_loss rose in iteration 2, from 3.500 to 3.600."  # the iteration that was rolled back is skipped
    assert "50\N{NO-BREAK SPACE}% of the 4-grams in its answers" in repeats


def test_cost_counts_gpu_hours_or_core_hours() -> None:
    cost = dict(costs(history(iteration(0, 3.9)), 12_345))
    assert cost["compute time"] == "2 h 30 min"
    assert cost["GPU-hours"] == "4.00 (NVIDIA H100)"  # half an hour on 8
    assert cost["core-hours"] == "8.00"  # two hours on 4; the GPU step's own cores are not counted again
    assert cost["tokens generated"] == "2,200"
    assert cost["answer tokens trained on"] == "12,345"


def test_the_largest_difference_of_sampler_and_reference_is_shown() -> None:
    def scored(difference: float) -> Manifest:
        facts = {"sampler_difference": difference, "sampler_tolerance": 0.01}
        return Manifest(step="ref-logprob", inputs={}, facts=facts)

    first, second = (
        replace(iteration(number, 3.9), shards=[(generations(), scored(0.00021 * (number + 1))), (generations(), None)])
        for number in (0, 1)
    )
    assert sampler_facts(history(first)) == [
        ("sampler and reference", "differ by 2.1e-04 nats per token, tolerance 0.01"),
    ]
    assert sampler_facts(history(first, second)) == [
        ("sampler and reference", "differ by 4.2e-04 nats per token, tolerance 0.01; maximum of 2 iterations"),
    ]
    assert sampler_facts(history(iteration(0, 3.9))) == []  # an older run, or one not scored yet


def test_settings_that_differ_from_the_default_are_marked() -> None:
    marked = {(name, row[0]) for name, rows in settings_tables(history()) for row in rows if row[2]}
    assert marked == {("generation", "max_new_tokens"), ("training", "lr")}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (61, "1 min 1 s"), (3700, "1 h 1 min"), (90_000, "1 d 1 h")],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_numbers_have_a_minus_sign() -> None:
    assert [signed(value) for value in (-0.5, 0.0, 1.25)] == ["−0.500", "0.000", "+1.250"]
    assert perplexity(0.0) == "1"
    assert perplexity(4.0458) == "57.2"


def test_shared_ends_of_prompts_stop_at_a_boundary_of_the_template() -> None:
    prompts = [f"<s>user\nWhat is {name}?</s>\n<s>assistant\n" for name in ("len", "list")]
    assert _shared_ends(prompts) == ("<s>user\n", "</s>\n<s>assistant\n")  # and not "What is l", not "?"
    assert _shared_ends(prompts[:1]) == ("", "")
    assert _shared_ends(["same\n", "same\n"]) == ("same\n", "")


@pytest.mark.parametrize("text", ["</script><script>", "<!--", "\u2028\u2029", "&amp;", '"\\\n\x00\x1f\ufffd'])
def test_embedded_json_cannot_end_its_element_and_round_trips(text: str) -> None:
    embedded = embedded_json({text: [text]})
    assert not set("<>&\u2028\u2029") & set(embedded)
    assert json.loads(embedded) == {text: [text]}


def test_text_in_a_page_is_escaped() -> None:
    run = history()
    names: dict[str, Any] = {
        "verdict": compute_verdict(run, {}),
        "tiles": [("<b>", "<i>", "&")],
        "warnings": ["<script>alert(1)</script>"],
    }
    record = {**run.record, "version": "<u>"}
    run = History("/<em>", record, run.data, None, [])
    page = render(
        "page.html",
        scripts=(),
        data={},
        history=run,
        iterations=[],
        warm_up=None,
        controls=[],
        held_out=[("<s>", SAMPLED)],
        evaluation={"models": ["<b>"], "rows": [("<i> acc", ["<u>"])], "remarks": ["<s>"]},
        origins=[("<a>", "<p>")],
        costs=[],
        settings=[],
        **names,
    )
    for tag in ("<b>", "<i>", "<s>", "<script>alert", "<u>", "<em>", "<a>", "<p>&"):
        assert tag not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_earlier_and_dropped_pairs_are_described() -> None:
    counts = PairCounts(
        num_pairs=1300,
        num_history=300,
        num_by_origin={2: 1000, 1: 200, 0: 100},
        num_dropped=4,
        dropped={"empty": 3, "identical": 1, "truncated": 0},
        history_dropped={"duplicate": 2},
    )
    assert about_pairs(2, counts) == (
        "Iteration 2 trains on 1,000 pairs of its own, 200 of iteration 1, 100 of iteration 0; all scored under "
        "its own reference. Dropped of the earlier pairs: 2 played alike since. Dropped of iteration 2's own: 3 empty, "
        "1 the human's own."
    )
    assert about_pairs(0, PairCounts(num_pairs=7, num_by_origin={0: 7}, dropped={"empty": 0})) == ""


def test_pairs_with_a_third_answer_are_counted() -> None:
    counts = PairCounts(num_pairs=1300, num_by_origin={1: 1300}, num_triplets=1290)
    assert about_pairs(1, counts) == (
        "Of iteration 1's 1,300 pairs, 1,290 have a third answer, of iteration 0; the others have no historical term."
    )


def test_advice_about_the_rewards_of_t_spin_names_settings_that_it_has() -> None:
    run = history(iteration(0, 3.9))
    rows = [*steps(0, loss=0.01, acc=1.0, actual=-0.1)]
    assert all("spin.ref_policy_kl_penalty" in warning for warning in find_warnings(run, rows))
    run.settings["objective"]["loss"] = "triplet"
    saturated, negative = find_warnings(run, rows)
    assert saturated.endswith("Use fewer epochs, or a lower training.lr or objective.alpha.")
    assert negative.endswith("Lower training.lr, or set objective.sft_weight.")


def test_many_pairs_dropped_by_settings_are_warned_of() -> None:
    run = history(iteration(0, 3.9))
    scored = Manifest(step="ref-logprob", inputs={}, facts={"dropped": {"near_identical": 15, "length_ratio": 10}})
    run.iterations[0].shards[0] = (run.iterations[0].shards[0][0], scored)
    (warning,) = find_warnings(run, steps(0))
    assert warning == (
        "25\N{NO-BREAK SPACE}% of the pairs of iteration 0 were dropped because of settings: 15 nearly the human's own "
        "(spin.max_similarity), 10 too unlike in length (spin.max_length_ratio)."
    )


def test_dropped_truncated_answers_are_not_warned_of() -> None:
    run = history(iteration(0, 3.9, finish_reasons={"stop": 70, "length": 30}))
    run.settings["generation"]["on_truncated"] = "drop"
    assert find_warnings(run, steps(0)) == []


def test_an_iteration_without_pairs_of_its_own_is_warned_of() -> None:
    run = history(iteration(0, 3.9), iteration(1, 3.8))
    scored = Manifest(step="ref-logprob", inputs={}, facts={"num_pairs": 90, "num_history": 90})
    run.iterations[1].shards[0] = (run.iterations[1].shards[0][0], scored)
    assert find_warnings(run, [*steps(0), *steps(1)]) == [
        "All pairs of iteration 1 were dropped; it was trained on pairs of earlier iterations only."
    ]
