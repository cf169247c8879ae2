"""Signs that a policy's answers degenerate, and how far it tells human answers from its reference's: over token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

_NGRAM = 4


def ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """Runs of `n` tokens, in order; none of a shorter answer."""
    return [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]


def repetition_rate(answers: Iterable[Sequence[int]], n: int = _NGRAM) -> float:
    """Share of an answer's n-grams that it has had before, averaged over answers that have any (seq-rep-n of
    arXiv:1908.04319); 0 where none has."""
    shares = [1 - len(set(found)) / len(found) for ids in answers if (found := ngrams(ids, n))]
    return fmean(shares) if shares else 0.0


def distinct(answers: Iterable[Sequence[int]], n: int) -> float:
    """Different n-grams of all answers together, for each n-gram there is (distinct-n of arXiv:1510.03055)."""
    found = [ngram for ids in answers for ngram in ngrams(ids, n)]
    return len(set(found)) / len(found) if found else 0.0


def length_ratio(answers: Sequence[Sequence[int]], human: Sequence[Sequence[int]]) -> float:
    """Mean tokens of the answers, for each of the human's; both have at least one."""
    return fmean(map(len, answers)) / fmean(map(len, human))


def spin_margins(
    actual: Sequence[float],
    ref_actual: Sequence[float],
    generated: Sequence[float],
    ref_generated: Sequence[float],
    beta: float,
) -> list[float]:
    """Each pair's r(x, y) - r(x, y') (arXiv:2401.01335), as the loss has it in training.

    Args:
        actual: log pi(y | x) of the human answers, nats.
        ref_actual: the same under the reference.
        generated: log pi(y' | x) of what the reference sampled.
        ref_generated: the same under the reference.
        beta: `ref_policy_kl_penalty`.
    """
    rows = zip(actual, ref_actual, generated, ref_generated, strict=True)
    return [beta * ((y - ref_y) - (sampled - ref_sampled)) for y, ref_y, sampled, ref_sampled in rows]
