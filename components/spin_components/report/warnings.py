"""Warnings about a run's data, answers, training and losses, with advice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spin_components.data.pair_counts import in_words
from spin_components.record.decisions import name_of
from spin_components.record.history import History, IterationHistory
from spin_components.report.verdict import percent

_MAX_TRUNCATED = 0.2
_MAX_IDENTICAL = 0.05
_MAX_DROPPED = 0.2
_CAUSES_OF_SETTINGS = ("truncated", "near_identical", "length_ratio")
_SATURATED_ACC, _SATURATED_LOSS = 0.995, 0.05
_MAX_LENGTH_RATIO, _MIN_LENGTH_RATIO = 2.0, 0.5
_MAX_REPETITION = 0.2
_ADVICE = {
    "continue": "The next iteration started from it nevertheless (selection.on_regression, selection.on_drift).",
    "roll_back": "The next iteration started from the best model instead.",
    "done": "It is not the best model.",
    "regressed": "The run ended with the best model; lower training.lr, or raise spin.ref_policy_kl_penalty.",
    "drifted": "The run ended with the best model; lower training.lr, or raise spin.ref_policy_kl_penalty.",
    "saturated": "The run ended with the best model (selection.patience).",
}


def find_warnings(history: History, rows: list[dict[str, Any]], repeats: Sequence[dict[str, Any]] = ()) -> list[str]:
    """Return the warnings about a run, each with advice.

    Args:
        history: manifests of the run.
        rows: metrics of every optimizer step.
        repeats: events of steps that were begun again.
    """
    warnings = _of_the_data(history)
    for iteration in history.iterations:
        if iteration.num_pairs:
            warnings += _of_the_answers(history, iteration)
        if steps := [row for row in rows if row["iteration"] == iteration.number]:
            warnings += _of_the_training(iteration.number, steps, history.settings.get("objective", {}))
    return warnings + _of_the_losses(history) + _of_the_samples(history) + _of_the_steps(repeats)


def _of_the_data(history: History) -> list[str]:
    facts, warnings = history.data.facts, []
    for name, what in (
        ("num_prompts_cut", "prompts were truncated; raise data.max_prompt_length, or see data.long_prompts"),
        ("num_answers_cut", "human answers were truncated and have no EOS; raise data.max_length"),
        ("num_removed_duplicates", "training records had the same prompt as a validation record and were left out"),
        ("num_removed_repeats", "training records repeated an earlier one, prompt and answer, and were left out"),
        ("num_shared_prompts", "training records have the same prompt as a validation record (data.deduplicate)"),
        ("num_train_duplicates", "training records are duplicates of an earlier one"),
        ("num_validation_duplicates", "validation records are duplicates of an earlier one"),
        ("num_bad_records", "records were invalid and skipped (data.on_bad_record)"),
        ("num_unrenderable_records", "records could not be rendered by the chat template and were skipped"),
    ):
        if number := facts.get(name):
            warnings.append(f"{number:,} {what}.")
    return [*warnings, *(f"{warning[0].upper()}{warning[1:]}." for warning in facts.get("warnings", []))]


def _of_the_answers(history: History, iteration: IterationHistory) -> list[str]:
    num, where, warnings = iteration.num_pairs, f"iteration {iteration.number}", []
    limit = history.settings["generation"]["max_new_tokens"]
    cut, kept = iteration.finish_reasons.get("length", 0) / num, history.settings["generation"].get("on_truncated")
    if cut > _MAX_TRUNCATED and kept != "drop":
        warnings.append(
            f"{percent(cut)} of the generated answers of {where} were truncated at generation.max_new_tokens = {limit} "
            "and have no EOS, which alone distinguishes them from human answers. Raise the limit."
        )
    same, empty = iteration.count("num_identical"), iteration.count("num_empty")
    if same / num > _MAX_IDENTICAL:
        warnings.append(
            f"{percent(same / num)} of the generated answers of {where} are identical to the human answer. Such pairs "
            "have no training signal and were dropped; raise generation.temperature, or stop after this iteration."
        )
    if empty:
        warnings.append(f"{empty:,} of {num:,} generated answers of {where} are empty and were dropped.")
    counts = iteration.pair_counts
    if iteration.number and counts.num_history and counts.num_pairs == counts.num_history:
        warnings.append(f"All pairs of {where} were dropped; it was trained on pairs of earlier iterations only.")
    if (share := sum(counts.dropped.get(cause, 0) for cause in _CAUSES_OF_SETTINGS) / num) > _MAX_DROPPED:
        causes = in_words({cause: counts.dropped.get(cause, 0) for cause in _CAUSES_OF_SETTINGS})
        warnings.append(f"{percent(share)} of the pairs of {where} were dropped because of settings: {causes}.")
    human, generated = (_mean(iteration, name) for name in ("mean_actual_tokens", "mean_generated_tokens"))
    if human and not _MIN_LENGTH_RATIO <= generated / human <= _MAX_LENGTH_RATIO:
        relation = "longer" if generated > human else "shorter"
        warnings.append(
            f"Generated answers of {where} are much {relation} than the human answers (mean {generated:.0f} and "
            f"{human:.0f} tokens), so length alone distinguishes them."
        )
    return warnings


def _mean(iteration: IterationHistory, name: str) -> float:
    shards = [generated.facts for generated, _ in iteration.shards]
    return sum(float(facts[name]) * int(facts["num_pairs"]) for facts in shards) / iteration.num_pairs


def _of_the_training(iteration: int, rows: list[dict[str, Any]], objective: dict[str, Any]) -> list[str]:
    has_reference = objective.get("loss") != "triplet"  # in its rewards, so that their weight holds the policy to it
    last = rows[-max(1, len(rows) // 4) :]
    acc, loss, actual, generated = (
        sum(float(row[name]) for row in last) / len(last)
        for name in ("acc", "loss", "rewards_actual_mean", "rewards_generated_mean")
    )
    warnings = []
    if acc >= _SATURATED_ACC and loss <= _SATURATED_LOSS:
        warnings.append(
            f"Margins of iteration {iteration} are saturated: over its last {len(last):,} steps the mean loss is "
            f"{loss:.3f} at a reward accuracy of {acc:.3f}, so they changed the policy little. Use fewer epochs, or a "
            f"lower training.lr{' or spin.ref_policy_kl_penalty' if has_reference else ' or objective.alpha'}."
        )
    if actual < 0 and generated < 0:
        warnings.append(
            f"Rewards of both kinds of answers are negative in iteration {iteration} (human {actual:.2f}, generated "
            f"{generated:.2f}): the policy also assigns the human answers less probability than its reference. Lower "
            f"training.lr, or {'raise spin.ref_policy_kl_penalty' if has_reference else 'set objective.sft_weight'}."
        )
    return warnings


def _of_the_losses(history: History) -> list[str]:
    if not history.start_check:
        return []
    before, warnings = float(history.start_check.facts["val_loss"]), []
    for iteration in history.published:
        facts = iteration.published.facts if iteration.published else {}
        loss, name = facts["val_loss"], f"iteration {iteration.number}"
        if facts.get("outcome") == "drifted":
            warnings.append(f"{name.capitalize()} has drifted: {facts['reason']}. {_ADVICE[facts['decision']]}")
        elif facts.get("outcome") == "regressed":
            warnings.append(f"{name.capitalize()} is worse: {facts['reason']}. {_ADVICE[facts['decision']]}")
        elif loss is not None and loss > before:
            warnings.append(f"val_loss rose in {name}, from {before:.3f} to {loss:.3f}.")
        if loss is not None and facts.get("decision") != "roll_back":
            before = loss
    return warnings


def _of_the_samples(history: History) -> list[str]:
    """Warnings about repetition in sampled answers to held-out prompts."""
    before = history.start_check.facts.get("repetition_rate") if history.start_check else None
    warnings = []
    for iteration in history.published:
        facts = iteration.published.facts if iteration.published else {}
        rate = facts.get("repetition_rate")
        if rate is not None and before is not None and rate > max(_MAX_REPETITION, 2 * before):
            warnings.append(
                f"The policy of iteration {iteration.number} repeats itself: {percent(rate)} of the 4-grams in its "
                f"answers to held-out prompts are repetitions, of {name_of(history.start)} {percent(before)}. Lower "
                "training.lr or the number of epochs; selection.max_repetition rejects such a policy."
            )
    return warnings


def _of_the_steps(repeats: Sequence[dict[str, Any]]) -> list[str]:
    """Warnings about steps that were begun again after they were killed or failed."""
    warnings = []
    for event in repeats:
        where = ", ".join(f"{name} {event[name]}" for name in ("iteration", "epoch", "shard") if name in event)
        warnings.append(f"{str(event.get('message', ''))[:300]}{f' ({where})' if where else ''}.")
    return warnings
