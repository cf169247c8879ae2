"""What a person should know before trusting a run's numbers, in words."""

from __future__ import annotations

from typing import Any

from spin_components.data.pair_counts import in_words
from spin_components.report.history import History, IterationHistory
from spin_components.report.verdict import percent

_MANY_CUT = 0.2
_MANY_IDENTICAL = 0.05
_MANY_DROPPED = 0.2
_BY_SETTING = ("truncated", "near_identical", "length_ratio")
_SATURATED_ACC, _SATURATED_LOSS = 0.995, 0.05
_LONGER, _SHORTER = 2.0, 0.5
_REPETITIVE = 0.2
_AFTERWARDS = {
    "continue": "The next iteration began from it all the same (selection.on_regression).",
    "roll_back": "The next iteration began from the best model instead.",
    "done": "It is not the best model.",
    "regressed": "The run ended with the best model; lower training.lr, or raise spin.ref_policy_kl_penalty.",
}


def cautions(history: History, rows: list[dict[str, Any]]) -> list[str]:
    """Findings, each with what to do about it.

    Args:
        history: of the run.
        rows: metrics of every step.
    """
    found = _of_the_data(history)
    for iteration in history.iterations:
        if iteration.num_pairs:
            found += _of_the_answers(history, iteration)
        if mine := [row for row in rows if row["iteration"] == iteration.number]:
            found += _of_the_training(iteration.number, mine)
    return found + _of_the_losses(history) + _of_the_samples(history)


def _of_the_data(history: History) -> list[str]:
    facts, found = history.data.facts, []
    for name, what in (
        ("num_prompts_cut", "prompts lost their beginning; raise data.max_prompt_length"),
        ("num_answers_cut", "human answers were cut and carry no EOS; raise data.max_length"),
        ("num_bad_records", "records could not be used and were left out (data.on_bad_record)"),
        ("num_unrenderable_records", "records could not be rendered by the chat template and were left out"),
    ):
        if number := facts.get(name):
            found.append(f"{number:,} {what}.")
    return found


def _of_the_answers(history: History, iteration: IterationHistory) -> list[str]:
    num, where, found = iteration.num_pairs, f"iteration {iteration.number}", []
    limit = history.settings["generation"]["max_new_tokens"]
    cut, kept = iteration.finish_reasons.get("length", 0) / num, history.settings["generation"].get("on_truncated")
    if cut > _MANY_CUT and kept != "drop":
        found.append(
            f"{percent(cut)} of the generated answers of {where} were cut at generation.max_new_tokens = {limit} and "
            "carry no EOS, so the policy can tell them by that alone. Raise the limit."
        )
    same, empty = iteration.count("num_identical"), iteration.count("num_empty")
    if same / num > _MANY_IDENTICAL:
        found.append(
            f"{percent(same / num)} of the generated answers of {where} are the human's own, word for word. They carry "
            "no signal and were dropped; raise generation.temperature, or stop playing here."
        )
    if empty:
        found.append(f"{empty:,} of {num:,} generated answers of {where} are empty and were dropped.")
    counts = iteration.pair_counts
    if iteration.number and counts.num_history and counts.num_pairs == counts.num_history:
        found.append(f"No pair of {where} itself was left; it was trained on those of earlier iterations alone.")
    if (share := sum(counts.dropped.get(cause, 0) for cause in _BY_SETTING) / num) > _MANY_DROPPED:
        words = in_words({cause: counts.dropped.get(cause, 0) for cause in _BY_SETTING})
        found.append(f"{percent(share)} of the pairs of {where} were left out by your settings: {words}.")
    human, generated = (_mean(iteration, name) for name in ("mean_actual_tokens", "mean_generated_tokens"))
    if human and not _SHORTER <= generated / human <= _LONGER:
        relation = "longer" if generated > human else "shorter"
        found.append(
            f"Generated answers of {where} are much {relation} than the human's ({generated:.0f} against {human:.0f} "
            "tokens), so length alone tells them apart."
        )
    return found


def _mean(iteration: IterationHistory, name: str) -> float:
    shards = [generated.facts for generated, _ in iteration.shards]
    return sum(float(facts[name]) * int(facts["num_pairs"]) for facts in shards) / iteration.num_pairs


def _of_the_training(iteration: int, rows: list[dict[str, Any]]) -> list[str]:
    last = rows[-max(1, len(rows) // 4) :]
    acc, loss, actual, generated = (
        sum(float(row[name]) for row in last) / len(last)
        for name in ("acc", "loss", "rewards_actual_mean", "rewards_generated_mean")
    )
    found = []
    if acc >= _SATURATED_ACC and loss <= _SATURATED_LOSS:
        found.append(
            f"Margins of iteration {iteration} are saturated: over its last {len(last):,} steps the loss is {loss:.3f} "
            "and every pair is told apart, so later steps taught little. Fewer epochs, or a lower training.lr or "
            "spin.ref_policy_kl_penalty, would save the time."
        )
    if actual < 0 and generated < 0:
        found.append(
            f"Rewards of both kinds of answer fell in iteration {iteration} (human {actual:.2f}, generated "
            f"{generated:.2f}): the policy makes the human's answers less likely too, only less so. Lower training.lr, "
            "or raise spin.ref_policy_kl_penalty."
        )
    return found


def _of_the_losses(history: History) -> list[str]:
    if not history.base:
        return []
    before, found = float(history.base.facts["val_loss"]), []
    for iteration in history.published:
        facts = iteration.published.facts if iteration.published else {}
        loss, name = facts["val_loss"], f"iteration {iteration.number}"
        if facts.get("outcome") == "regressed":
            found.append(f"{name.capitalize()} regressed: {facts['reason']}. {_AFTERWARDS[facts['decision']]}")
        elif loss is not None and loss > before:
            found.append(f"val_loss rose in {name}, from {before:.3f} to {loss:.3f}.")
        if loss is not None and facts.get("decision") != "roll_back":
            before = loss
    return found


def _of_the_samples(history: History) -> list[str]:
    """Held-out answers that went astray since the base model's."""
    before = history.base.facts.get("repetition_rate") if history.base else None
    found = []
    for iteration in history.published:
        facts = iteration.published.facts if iteration.published else {}
        rate = facts.get("repetition_rate")
        if rate is not None and before is not None and rate > max(_REPETITIVE, 2 * before):
            found.append(
                f"The policy of iteration {iteration.number} repeats itself: {percent(rate)} of the 4-grams of its "
                f"answers to held-out prompts, the base model's {percent(before)}. Lower training.lr or the number of "
                "epochs; selection.max_repetition refuses such a policy."
            )
    return found
