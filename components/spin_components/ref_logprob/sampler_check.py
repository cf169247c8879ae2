"""Checks that the reference is the model that sampled the answers, by comparing both log-probabilities of each.

Both are taken before temperature, filters and penalties, so they differ by rounding alone. The loss uses those of the
reference.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

from spin_components.data.shards import Pair, Score
from spin_components.errors import IntegrityError

SAMPLER_TOLERANCE: Mapping[tuple[str, str], float] = {
    ("transformers", "float32"): 1e-3,
    ("transformers", "bf16"): 0.05,
    ("vllm", "float32"): 1e-2,
    ("vllm", "bf16"): 0.1,
}
"""Largest allowed difference, nats a token in the mean over a shard, by engine and the coarser of both precisions.

A single token may differ by more (in bf16 by up to 0.3), but the signs vary, so the sum over an answer's tokens differs
by much less. See `hardware.sampler_tolerance`."""


def check_sampler(
    pairs: Sequence[Pair],
    scores: Sequence[Score],
    *,
    iteration: int,
    engine: str,
    precision: str,
    tolerance: float = 0.0,
    where: str,
) -> dict[str, float]:
    """Compare the log-probabilities of the generated answers under the sampler and under the reference.

    Args:
        pairs: of an iteration; those of earlier iterations were sampled from other models and are left out.
        scores: of the same pairs, in the same order.
        iteration: t.
        engine: that sampled the iteration's answers.
        precision: the coarser of the sampler's and the reference's.
        tolerance: nats a token; 0 takes `SAMPLER_TOLERANCE`.
        where: the file of the pairs, named in the error.

    Returns: `sampler_difference`, the absolute differences of the answers' sums over their tokens, nats a token, and
        `sampler_tolerance`; empty where there are no pairs.

    Raises:
        IntegrityError: the difference exceeds the tolerance.
    """
    num_tokens, sampled, scored = 0, array("d"), array("d")
    for pair, score in zip(pairs, scores, strict=True):
        if pair.origin == iteration:
            num_tokens += len(pair.generated_ids)
            sampled.append(pair.sampled_logprob)
            scored.append(score.ref_generated)
    if not num_tokens:
        return {}
    tolerance = tolerance or SAMPLER_TOLERANCE[engine, precision]
    difference = sum(abs(one - other) for one, other in zip(sampled, scored, strict=True)) / num_tokens
    if not difference <= tolerance:  # also where it is NaN
        raise IntegrityError(
            f"{where}: the generated answers were not sampled from the reference as it scores them. Their tokens had "
            f"{sum(sampled) / num_tokens:.4f} nats each when they were sampled and have {sum(scored) / num_tokens:.4f} "
            f"now; answer by answer that is {difference:.3g} nats a token apart over {len(sampled)} answers of "
            f"{num_tokens} tokens, expected at most {tolerance:g} ({engine}, {precision}). One of these differs "
            "between generate and ref-logprob: the weights, the prompt's token ids (template, BOS), the answer's "
            "(EOS), or the code of the model. Delete the manifest beside the file to have the answers sampled again; "
            "if only rounding differs on this hardware, raise hardware.sampler_tolerance"
        )
    return {"sampler_difference": difference, "sampler_tolerance": tolerance}


def coarser(*precisions: str) -> str:
    """The least precise of some precisions."""
    return "bf16" if "bf16" in precisions else "float32"
