"""Measures of each answer that a policy gives to held-out prompts, against the human's answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from sacrebleu.metrics.chrf import CHRF

from spin_components.algorithm.answer_stats import distinct, is_match, repetition_rate
from spin_components.data.shards import GREEDY, AnswerMeasures, Prompt
from spin_components.engine.engine import Answer
from spin_components.settings.selection import SelectionSettings


def measure_answers(
    decoding: str, prompts: Sequence[Prompt], answers: Sequence[Answer], decode: Callable[[list[int]], str]
) -> list[AnswerMeasures]:
    """Measure each answer.

    chrF (character n-gram F-score, doi:10.18653/v1/W15-3049) is sacrebleu's, of single answers.

    Args:
        decoding: `data.shards.SAMPLED` or `GREEDY`.
        prompts: with the human answers.
        answers: of the policy, in the order of the prompts.
        decode: text of token ids, without special tokens.
    """
    chrf = CHRF()
    rows = []
    for prompt, answer in zip(prompts, answers, strict=True):
        text, human = decode(answer.token_ids), decode(prompt.actual_ids)
        rows.append(
            AnswerMeasures(
                prompt.index,
                decoding,
                answer.token_ids,
                len(answer.token_ids),
                len(prompt.actual_ids),
                answer.finish_reason != "length",
                repetition_rate([answer.token_ids]),
                chrf.sentence_score(text, [human]).score,
                is_match(text, human),
            )
        )
    return rows


def mean_measures(rows: Sequence[AnswerMeasures]) -> dict[str, Any]:
    """Means over the answers of one decoding, by their names in a manifest; those of greedy ones begin with `greedy_`.

    Args:
        rows: at least one, all of the same decoding.
    """
    means = {
        "ended_share": sum(row.ended for row in rows) / len(rows),
        "chrf": fmean(row.chrf for row in rows),
        "match": sum(row.match for row in rows) / len(rows),
    }
    if rows[0].decoding == GREEDY:
        ids = [row.generated_ids for row in rows]
        means |= {
            "length_ratio": sum(row.num_tokens for row in rows) / sum(row.actual_tokens for row in rows),
            "repetition_rate": repetition_rate(ids),
            "distinct_1": distinct(ids, 1),
            "distinct_2": distinct(ids, 2),
        }
    prefix = "greedy_" if rows[0].decoding == GREEDY else ""
    return {f"{prefix}{name}": round(value, 4) for name, value in means.items()}


def length_warning(facts: Mapping[str, Any], rules: SelectionSettings, model: str) -> str:
    """A warning where the answers of the first reference break the limit on length that iterations have; or empty.

    Args:
        facts: of its validation.
        rules: `[selection]`.
        model: its name, for the text.
    """
    ratio, most = facts.get("length_ratio"), rules.max_length_ratio
    if not most or ratio is None or 1 / most <= ratio <= most:
        return ""
    return (
        f"{model}'s own answers are {ratio:.2f} times as long as the human's, which is not within "
        f"selection.max_length_ratio = {most:g}: iterations that answer like it count as drifted. Begin from a "
        "fine-tuned model, raise generation.max_new_tokens if answers are cut, or set selection.max_length_ratio = 0"
    )
