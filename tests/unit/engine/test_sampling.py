from __future__ import annotations

import torch

from spin_components.engine.sampling import sample_softmax

NEVER = float("-inf")


def test_sampling_by_hand() -> None:
    scores = torch.tensor([[0.5, 0.0, 0.25, 0.25]]).log().expand(7, 4)
    # the distribution function is 0.5, 0.5, 0.75, 1: token 1 has no share
    uniforms = torch.tensor([0.0, 0.49, 0.51, 0.74, 0.76, 0.99, 1 - 2**-53], dtype=torch.float64)
    assert sample_softmax(scores, uniforms).tolist() == [0, 0, 2, 2, 3, 3, 3]


def test_tokens_of_probability_0_are_never_sampled() -> None:
    scores = torch.tensor([[NEVER, 3.0, NEVER, 3.0, NEVER]]).expand(3, 5)
    uniforms = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert sample_softmax(scores, uniforms).tolist() == [1, 3, 3]
