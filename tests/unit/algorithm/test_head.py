from __future__ import annotations

import weakref
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from spin_components.algorithm import head
from spin_components.algorithm.batching import LOGITS_BYTES
from spin_components.algorithm.head import AnswerHead, answer_head
from spin_components.algorithm.logprobs import answer_logprobs
from support.bounds import checkpoint_contexts, float64
from support.families import (
    CONFIGS,
    LAYOUTS,
    SEQUENCES,
    SIZES,
    assert_gradients_close,
    gradients,
    groups_of,
    logprob_bound,
    model_of,
)

WEIGHTS = [1.0, -2.0, 0.5, 3.0, -1.0]


@pytest.mark.parametrize("attention", LAYOUTS)
@pytest.mark.parametrize("family", CONFIGS)
@float64()
def test_chunks_change_neither_log_probabilities_nor_gradients(
    family: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, groups = model_of(family, attention), groups_of(SEQUENCES)
    whole = answer_logprobs(model, groups)
    expected = gradients(model, whole, WEIGHTS)
    monkeypatch.setattr(head, "checkpoint", partial(torch.utils.checkpoint.checkpoint, context_fn=checkpoint_contexts))
    monkeypatch.setattr(answer_head(model), "chunk", 3)  # 21 answer tokens: most chunks hold several answers' ends
    chunked = answer_logprobs(model, groups)
    chunked_gradients = gradients(model, chunked, WEIGHTS)
    torch.testing.assert_close(chunked, whole, rtol=0.0, atol=logprob_bound(model))
    assert_gradients_close(model, chunked_gradients, expected, WEIGHTS, num_tokens=21)


def kept_for_backward(chunk: int) -> int:
    """Number of elements in (tokens, V) tensors that autograd saves for the backward pass."""
    model = LlamaForCausalLM(LlamaConfig(**SIZES | {"vocab_size": 96}))
    answer_head(model).chunk = chunk
    kept: list[weakref.ref[list[Tensor]]] = []

    class Box(list[Tensor]):
        """A list that can be referred to weakly."""

    def keep(tensor: Tensor) -> Box:
        box = Box([tensor])
        kept.append(weakref.ref(box))
        return box

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda box: box[0]):
        logprobs = answer_logprobs(model, groups_of(SEQUENCES))
    alive = {box[0].data_ptr(): box[0] for ref in kept if (box := ref()) is not None}
    assert logprobs.requires_grad  # the graph is alive
    # the head's weight is saved as well, as (H, V)
    logit_tensors = [tensor for tensor in alive.values() if tensor.ndim == 2 and tensor.shape[1] == 96]
    return sum(tensor.numel() for tensor in logit_tensors if tensor.shape[0] != SIZES["hidden_size"])


def test_chunked_logits_are_not_saved_for_the_backward_pass() -> None:
    num_tokens = sum(len(sequence.answer_ids) for sequence in SEQUENCES)
    assert kept_for_backward(chunk=1000) == num_tokens * 96
    assert kept_for_backward(chunk=4) == 0


def test_a_chunk_has_as_many_tokens_as_its_bytes_allow() -> None:
    assert AnswerHead(model_of("qwen2")).chunk == LOGITS_BYTES // (4 * SIZES["vocab_size"])


def test_a_model_with_the_head_still_generates() -> None:
    model = model_of("llama")
    answer_head(model)
    assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False).shape == (1, 6)


class _Flat(LlamaForCausalLM):  # type: ignore[misc]
    """A model whose `forward` calls its layers itself, without a module between them and the head."""

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None, **kwargs: Any) -> Any:
        hidden = self.model.norm(self.model.embed_tokens(input_ids))
        return SimpleNamespace(logits=self.lm_head(hidden))


def test_a_model_without_a_body_computes_all_logits() -> None:
    flat = _Flat(LlamaConfig(**SIZES)).eval()
    head = answer_head(flat)
    assert head.body is None
    expected = torch.log_softmax(flat(input_ids=torch.tensor([[5, 6, 7]])).logits[0].float(), dim=-1)
    found = flat(input_ids=torch.tensor([[5, 6, 7]]), positions=torch.tensor([0, 1]), targets=torch.tensor([6, 7]))
    torch.testing.assert_close(found, torch.stack([expected[0, 6], expected[1, 7]]))


def test_the_body_is_what_forward_calls_first() -> None:
    llama = model_of("llama")
    assert answer_head(llama).body is llama.model
    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}
    opt = OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=32))
    assert answer_head(opt).body is opt.model.decoder  # not opt.model
