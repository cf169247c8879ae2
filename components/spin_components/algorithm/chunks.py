"""Chunk size of the logits, used by the head that computes them and by the memory estimate."""

from __future__ import annotations

LOGITS_BYTES = 256 * 2**20
"""Size of one chunk of float32 logits."""


def logit_chunk(vocabulary: int, chunk_bytes: int = LOGITS_BYTES) -> int:
    """Number of tokens whose float32 logits fit `chunk_bytes`, at least one."""
    return max(1, chunk_bytes // (4 * vocabulary))
