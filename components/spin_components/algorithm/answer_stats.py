"""Statistics of a policy's answers over token ids: repetition, diversity, length, and SPIN margins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

_NGRAM = 4


def ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """All n-grams of a token sequence, in order; empty for one shorter than `n`."""
    return [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]


def repetition_rate(answers: Iterable[Sequence[int]], n: int = _NGRAM) -> float:
    """Share of repeated n-grams in an answer, averaged over answers of at least `n` tokens (seq-rep-n of
    arXiv:1908.04319); 0 where there is no such answer."""
    shares = [1 - len(set(grams)) / len(grams) for ids in answers if (grams := ngrams(ids, n))]
    return fmean(shares) if shares else 0.0


def distinct(answers: Iterable[Sequence[int]], n: int) -> float:
    """Distinct n-grams divided by all n-grams, over all answers together (distinct-n of arXiv:1510.03055)."""
    grams = [ngram for ids in answers for ngram in ngrams(ids, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def is_match(answer: str, human: str) -> bool:
    """Whether two texts are equal but for case and white space."""
    return " ".join(answer.split()).casefold() == " ".join(human.split()).casefold()


def length_ratio(answers: Sequence[Sequence[int]], human: Sequence[Sequence[int]]) -> float:
    """Mean length of the answers divided by that of the human answers, in tokens; neither may be empty."""
    return fmean(map(len, answers)) / fmean(map(len, human))


def spin_margins(
    actual: Sequence[float],
    ref_actual: Sequence[float],
    generated: Sequence[float],
    ref_generated: Sequence[float],
    beta: float,
) -> list[float]:
    """Margin r(x, y) - r(x, y') of each pair, as in the training loss (arXiv:2401.01335).

    Args:
        actual: log pi(y | x) of the human answers, in nats.
        ref_actual: the same under the reference.
        generated: log pi(y' | x) of the answers sampled from the reference, in nats.
        ref_generated: the same under the reference.
        beta: weight of the log-ratio (`ref_policy_kl_penalty`).
    """
    rows = zip(actual, ref_actual, generated, ref_generated, strict=True)
    return [beta * ((y - ref_y) - (sampled - ref_sampled)) for y, ref_y, sampled, ref_sampled in rows]
