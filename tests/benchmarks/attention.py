"""Eager against sdpa attention on the CPU: forward and backward of answers, at the lengths of real pairs.

    python tests/benchmarks/attention.py [NUM_TIMES]

Prints the median seconds of each, alternating in one process, on a model of SmolLM2-135M's shape with 6 layers.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.packing import Prompted


def main(num_times: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    lengths = [(44, 19 + 4 * (row % 8)) for row in range(16)]
    rows = [Prompted([5] * prompt, ([7] * answer,)) for prompt, answer in lengths]
    seconds: dict[str, list[float]] = {"eager": [], "sdpa": []}
    for turn in range(num_times + 1):
        for name, found in seconds.items():
            model.set_attn_implementation(name)
            started = time.perf_counter()
            torch.autograd.backward(answer_logprobs(model, rows).sum())
            model.zero_grad()
            if turn:
                found.append(time.perf_counter() - started)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    for name, median in medians.items():
        print(f"{name:<8}{median:8.2f} s")  # noqa: T201
    print(f"sdpa / eager: {medians['sdpa'] / medians['eager']:.2f}")  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
