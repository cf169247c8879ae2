"""Arithmetic that a training step on pairs needs at the least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spin_components.data.shards import Pair


def of_training(model: Any, pairs: Sequence[Pair]) -> float:
    """Floating-point operations of a forward and backward pass over pairs with the prompt computed once.

    6 for each weight of the blocks and token (Kaplan et al., arXiv:2001.08361, section 2.1), 6 for each weight of the
    head and answer token, and attention over the preceding tokens, half of a square: 12 L h for each pair of tokens.
    """
    config = model.config
    num_body = sum(p.numel() for p in model.base_model.parameters()) - model.get_input_embeddings().weight.numel()
    total = 0.0
    for pair in pairs:
        prompt, answers = len(pair.prompt_ids), (len(pair.actual_ids), len(pair.generated_ids))
        attended = prompt**2 / 2 + sum(answer * (prompt + answer / 2) for answer in answers)
        total += 6 * num_body * (prompt + sum(answers))
        total += 6 * config.vocab_size * config.hidden_size * sum(answers)
        total += 12 * config.num_hidden_layers * config.hidden_size * attended
    return total
