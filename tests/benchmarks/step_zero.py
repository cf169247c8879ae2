"""Why a naive first loss misses ln 2 in bf16: the same pairs scored in several ways, on the demo's model.

    python tests/benchmarks/step_zero.py [NUM_PAIRS]

Prints, for each way of computing the reference, how far the first loss is from ln 2 and the largest difference of a
log-ratio, with the policy computed as in training (float32 weights under bf16 autocast, shuffled, padded otherwise).
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from spin_components.algorithm.batching import permutation
from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.loss import AnswerLogprobs, spin_loss
from spin_components.data.builtin import docstrings, make_smollm2
from spin_components.data.formats import Conversation, Message
from spin_components.data.rendering import Renderer
from spin_components.data.shards import Pair
from spin_components.data.turn_ends import find_eos_ids
from spin_components.model.folder import load_tokenizer
from spin_components.model.loading import load_model
from spin_components.model.scoring import all_answers
from spin_components.settings.run import ModelSettings


def make_pairs(folder: Path, num: int) -> list[Pair]:
    """Pairs of real answers, the "generated" one being another question's."""
    tokenizer = load_tokenizer(folder, ModelSettings(base=str(folder)))
    renderer = Renderer(tokenizer, find_eos_ids(tokenizer, 2), max_length=192, max_prompt_length=128)
    found = list(docstrings(limit=2 * num))
    pairs = []
    for index in range(num):
        prompt = (Message("user", found[index][0]),)
        actual, generated = (renderer.render(Conversation(prompt, found[k][1])) for k in (index, num + index))
        pairs.append(Pair(index, actual.prompt_ids, actual.actual_ids, generated.actual_ids, "stop"))
    return pairs


def sums(model: Any, pairs: list[Pair], order: list[int], size: int, *, autocast: bool) -> torch.Tensor:
    """(2, num) float32: log-probabilities of both answers, computed in a given order and batch size."""
    result = torch.zeros(2, len(pairs))
    for start in range(0, len(pairs), size):
        places = order[start : start + size]
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            result[:, places] = answer_logprobs(model, all_answers([pairs[place] for place in places])).view(-1, 2).T
    return result


def t_spin_loss(logprobs: torch.Tensor) -> float:
    """T-SPIN's loss in iteration 0 of (2, num) log-probabilities, alpha = 1."""
    return float(torch.nn.functional.softplus(logprobs[1] - logprobs[0]).mean())


def main(num: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model")
        make_smollm2(path)
        pairs = make_pairs(path, num)
        master = load_model(path, ModelSettings(base=str(path))).eval()
    by_length = sorted(range(num), key=lambda place: pairs[place].num_tokens)
    shuffled = permutation(num, seed=1)
    policy = sums(master, pairs, shuffled, 2, autocast=True)
    ways = {
        "float32 weights under autocast, the same batches": sums(master, pairs, shuffled, 2, autocast=True),
        "float32 weights under autocast, other batches": sums(master, pairs, by_length, 4, autocast=True),
        "float32 throughout, other batches": sums(master, pairs, by_length, 4, autocast=False),
        "bf16 weights, the same batches": sums(master.bfloat16(), pairs, shuffled, 2, autocast=False),
    }
    print(f"{'reference':<52}{'|loss - ln 2|':>14}{'T-SPIN':>10}{'largest log-ratio':>20}")  # noqa: T201
    for name, reference in ways.items():
        loss = spin_loss(AnswerLogprobs(*policy), AnswerLogprobs(*reference), beta=0.1)
        largest = float((policy - reference).abs().max())
        moved = abs(t_spin_loss(policy) - t_spin_loss(reference))
        print(f"{name:<52}{abs(float(loss) - math.log(2)):>14.6f}{moved:>10.6f}{largest:>20.4f}")  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
