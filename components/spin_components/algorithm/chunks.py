"""How many logits are in memory at a time: for the head that computes them, and for whoever foresees their memory."""

from __future__ import annotations

LOGITS_BYTES = 256 * 2**20
"""Of one chunk's float32 logits."""


def logit_chunk(vocabulary: int, chunk_bytes: int = LOGITS_BYTES) -> int:
    """Tokens whose logits are computed at a time, at least one."""
    return max(1, chunk_bytes // (4 * vocabulary))
