"""Every kernel of packed attention against single sequences; what a GPU computes is plain torch here."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from spin_components.algorithm.attention.flex import FlexKernel
from spin_components.algorithm.attention.kernels import (
    FLASH,
    FLEX,
    TOLERANCE,
    VARLEN,
    Candidate,
    LayerNeeds,
    check_kernel,
    choose_kernel,
    varlen_misfit,
)
from spin_components.algorithm.attention.varlen import VarlenKernel, torch_varlen
from spin_components.algorithm.packing import PACKED, AttentionOptions, Kernel, attend_by_answer
from support import bounds
from support.attention import flex_reference, varlen_reference

CPU = torch.device("cpu")
LENGTHS = [[3, 2, 4], [1, 3, 0], [7, 5, 1], [1, 1, 1], [2, 2, 3]]
KERNELS: dict[str, Kernel] = {
    "by answer": attend_by_answer,
    "varlen": VarlenKernel(varlen_reference, has_softcap=True),
    "flex": FlexKernel(flex_reference),
}
OPTIONS = {
    "plain": AttentionOptions(),
    "scaled": AttentionOptions(scaling=0.7),
    "window": AttentionOptions(window=3),
    "window of one": AttentionOptions(window=1),
    "capped": AttentionOptions(softcap=1.0, window=4),
    "sinks": AttentionOptions(sinks=torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64), window=5),
}
NONE = ("varlen", "sinks")  # refused below
PLAIN = LayerNeeds(4, 2, 8, 8, False, False, False)


Inputs = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values."""


def tensors(size: int = 8, heads: int = 4, keys: int = 2, lengths: list[list[int]] = LENGTHS) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    num = sum(map(sum, lengths))

    def drawn(number: int) -> Tensor:
        return torch.randn(1, number, num, size, generator=generator, dtype=torch.float64).requires_grad_()

    return drawn(heads), drawn(keys), drawn(keys)


def detached(inputs: Inputs, dtype: torch.dtype = torch.float64) -> Inputs:
    query, key, value = (tensor.detach().to(dtype) for tensor in inputs)
    return query, key, value


def by_definition(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions, lengths: Any) -> Tensor:
    """Each answer by itself: softmax of scaled, bounded scores over the tokens before it in its own sequence."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(repeats, 1) for tensor in (key, value))
    rows: dict[int, Tensor] = {}
    first = 0
    for prompt, *answers in lengths:
        start = first + prompt
        for length in answers:
            sequence = [*range(first, first + prompt), *range(start, start + length)]
            for place, token in enumerate(sequence):
                low = 0 if options.window is None else max(0, place - options.window + 1)
                seen = sequence[low : place + 1]
                scale = query.shape[-1] ** -0.5 if options.scaling is None else options.scaling
                scores = (query[0, :, [token]] * key[0, :, seen]).sum(-1) * scale  # (H, tokens)
                if options.softcap is not None:
                    scores = options.softcap * torch.tanh(scores / options.softcap)
                weights = scores.exp()
                total = weights.sum(-1, keepdim=True)
                if options.sinks is not None:
                    total = total + options.sinks.exp()[:, None]
                rows[token] = ((weights / total)[..., None] * value[0, :, seen]).sum(1)
            start += length
        first = start
    return torch.stack([rows[token] for token in sorted(rows)], dim=1)[None]


@pytest.mark.parametrize(("kernel", "options"), [each for each in itertools.product(KERNELS, OPTIONS) if each != NONE])
@bounds.float64()
def test_outputs_and_gradients_are_those_of_single_sequences(kernel: str, options: str) -> None:
    inputs = tensors()
    weights = torch.randn(1, 4, inputs[0].shape[2], 8, generator=torch.Generator().manual_seed(1))
    found = KERNELS[kernel](*inputs, torch.tensor(LENGTHS), OPTIONS[options])
    expected = by_definition(*inputs, OPTIONS[options], LENGTHS)
    gradients, of_definition = (torch.autograd.grad((each * weights).sum(), inputs) for each in (found, expected))
    # a sum of up to 12 products of numbers below 6, and its gradient over up to 2 answers
    atol = bounds.of_sum([6.0**3] * 24, torch.float64)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=atol)
    for gradient, other in zip(gradients, of_definition, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0.0, atol=10 * atol)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("heads", "keys", "size"), [(4, 4, 8), (4, 1, 8), (6, 3, 5), (2, 2, 12)])
@bounds.float64()
def test_heads_of_any_number_and_size(kernel: str, heads: int, keys: int, size: int) -> None:
    inputs = tensors(size, heads, keys)
    found = KERNELS[kernel](*inputs, torch.tensor(LENGTHS), AttentionOptions())
    expected = by_definition(*inputs, AttentionOptions(), LENGTHS)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=bounds.of_sum([6.0**3] * 24, torch.float64))


@bounds.float64()
def test_blocks_of_a_long_batch_are_skipped_without_loss() -> None:
    lengths = [[150, 90, 120], [10, 40, 0], [1, 200, 3]]
    inputs = tensors(lengths=lengths)
    for window in (None, 7, 100):
        options = AttentionOptions(window=window)
        found = FlexKernel(flex_reference)(*inputs, torch.tensor(lengths), options)
        expected = attend_by_answer(*inputs, torch.tensor(lengths), options)
        torch.testing.assert_close(found, expected, rtol=0.0, atol=bounds.of_sum([6.0**3] * 300, torch.float64))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("options", OPTIONS)
def test_flex_attention_itself_gives_the_same_outputs(options: str) -> None:
    inputs = detached(tensors())
    found = FlexKernel()(*inputs, torch.tensor(LENGTHS), OPTIONS[options])
    expected = FlexKernel(flex_reference)(*inputs, torch.tensor(LENGTHS), OPTIONS[options])
    torch.testing.assert_close(found, expected, rtol=0.0, atol=bounds.of_sum([6.0**3] * 24, torch.float64))
    assert flex_attention is not flex_reference


@pytest.mark.parametrize("kernel", ["varlen", "flex"])
def test_kernels_compute_in_the_dtype_of_autocast(kernel: str) -> None:
    inputs = detached(tensors(), torch.float32)  # as rotary embeddings leave queries and keys
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = KERNELS[kernel](*inputs, torch.tensor(LENGTHS), AttentionOptions())
    assert found.dtype == torch.bfloat16


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_batch_that_was_scored_can_be_trained_on(kernel: str) -> None:
    lengths = [[4, 3, 2], [1, 1, 1]]  # of no other test: index tensors are kept
    inputs = tensors(lengths=lengths)
    with torch.inference_mode():
        KERNELS[kernel](*detached(inputs), torch.tensor(lengths), AttentionOptions())
    KERNELS[kernel](*inputs, torch.tensor(lengths), AttentionOptions()).sum().backward()  # type: ignore[no-untyped-call]
    assert all(tensor.grad is not None for tensor in inputs)


def test_prompts_alone_need_no_copies_of_keys() -> None:
    inputs = tensors(lengths=[[4, 0], [2, 0]])
    found = VarlenKernel(varlen_reference)(*inputs, torch.tensor([[4, 0], [2, 0]]), AttentionOptions())
    expected = by_definition(*inputs, AttentionOptions(), [[4, 0], [2, 0]])
    torch.testing.assert_close(found, expected, rtol=0.0, atol=bounds.of_sum([6.0**3] * 24, torch.float64))


@pytest.mark.parametrize("options", [OPTIONS["sinks"], OPTIONS["capped"]])
def test_what_varlen_lacks_is_refused(options: AttentionOptions) -> None:
    with pytest.raises(NotImplementedError, match="neither soft-capping nor sinks"):
        VarlenKernel(varlen_reference)(*tensors(), torch.tensor(LENGTHS), options)


def test_torch_takes_the_arguments_of_its_varlen_kernel() -> None:
    # its operation has no kernel for CPUs: with the shapes and dtypes of fake tensors it is called all the same
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        query, key = torch.empty(9, 4, 8, dtype=torch.bfloat16), torch.empty(12, 2, 8, dtype=torch.bfloat16)
        query_ends, key_ends = torch.empty(3, dtype=torch.int32), torch.empty(3, dtype=torch.int32)
        for window in (-1, 0, 5):
            output = torch_varlen()(query, key, key, query_ends, key_ends, 5, 7, scale=0.5, window=window, softcap=0.0)
            assert output.shape == query.shape


@pytest.mark.parametrize("layer", [PLAIN, PLAIN._replace(has_window=True), PLAIN._replace(head_size=5, value_size=5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_right_kernel_passes_the_check(layer: LayerNeeds, dtype: torch.dtype) -> None:
    for kernel in (VarlenKernel(varlen_reference), FlexKernel(flex_reference), attend_by_answer):
        assert check_kernel(kernel, [layer], dtype, CPU) == ""


def test_every_option_passes_the_check_where_the_kernel_has_it() -> None:
    layer = LayerNeeds(4, 2, 8, 8, True, True, True)
    assert check_kernel(FlexKernel(flex_reference), [layer], torch.float32, CPU) == ""


def _top_left(*arguments: Any, **named: Any) -> Tensor:
    """A kernel that aligns queries and keys at the top left, as flash-attn did before 2.1."""
    query, key, value, query_ends, key_ends, *_ = arguments
    outputs = []
    for (first, last), (first_key, last_key) in zip(
        itertools.pairwise(query_ends.tolist()), itertools.pairwise(key_ends.tolist()), strict=True
    ):
        num_queries, num_keys = last - first, last_key - first_key
        keys, values = key[first_key:last_key], value[first_key:last_key]
        whole = torch.cat([query[first:last], torch.zeros_like(keys[: num_keys - num_queries])])
        ends = torch.tensor([0, num_keys], dtype=torch.int32)
        square = varlen_reference(whole, keys, values, ends, ends, num_keys, num_keys, **named)
        outputs.append(square[: last - first])
    return torch.cat(outputs)


@pytest.mark.parametrize(
    ("wrong", "layer"),
    [
        (VarlenKernel(_top_left), PLAIN._replace(key_heads=4)),
        (VarlenKernel(lambda *args, **named: varlen_reference(*args, **{**named, "window": -1})), PLAIN),
        (
            lambda query, key, value, lengths, options: attend_by_answer(query, key.detach(), value, lengths, options),
            PLAIN,
        ),
    ],
    ids=["top left", "no window", "no gradient of keys"],
)
def test_a_wrong_kernel_does_not_pass_the_check(wrong: Kernel, layer: LayerNeeds) -> None:
    layer = layer._replace(has_window=layer.key_heads == 2)
    try:
        found = check_kernel(wrong, [layer], torch.float32, CPU)
    except RuntimeError as error:  # autograd finds keys unused
        found = str(error)
    assert found


Open = Callable[[], Kernel]


def candidates(**opened: Open) -> list[Candidate]:
    """The kernels of a GPU, with what each opens here."""
    varlen = opened.get("varlen", lambda: VarlenKernel(varlen_reference))
    flash = opened.get("flash", lambda: VarlenKernel(varlen_reference, has_softcap=True))
    return [
        Candidate(VARLEN, varlen, varlen_misfit),
        Candidate(FLASH, flash, partial(varlen_misfit, has_softcap=True)),
        Candidate(FLEX, opened.get("flex", lambda: FlexKernel(flex_reference)), lambda *_: ""),
        Candidate(PACKED, lambda: attend_by_answer, lambda *_: ""),
    ]


def chosen(layer: LayerNeeds, dtype: torch.dtype = torch.bfloat16, capability: int = 9, **opened: Open) -> str:
    return choose_kernel([layer], dtype, CPU, candidates(**opened), (capability, 0)).name


def test_the_first_kernel_that_fits_is_chosen() -> None:
    assert chosen(PLAIN) == VARLEN
    assert chosen(PLAIN._replace(has_window=True)) == VARLEN
    assert chosen(PLAIN._replace(has_softcap=True)) == FLASH
    assert chosen(PLAIN._replace(has_sinks=True)) == FLEX
    assert chosen(PLAIN._replace(head_size=512, value_size=512)) == FLEX
    assert chosen(PLAIN._replace(value_size=4)) == FLEX
    assert chosen(PLAIN, torch.float32) == FLEX
    assert chosen(PLAIN, capability=7) == FLEX


def test_a_kernel_that_is_missing_fails_or_differs_is_passed_over() -> None:
    def missing() -> Kernel:
        raise ModuleNotFoundError("No module named 'flash_attn'")

    def failing(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("no kernel image is available\nfor this device")

    def other(*arguments: Any, **named: Any) -> Tensor:
        return varlen_reference(*arguments, **named) * 1.5

    opened = {"varlen": lambda: VarlenKernel(other), "flash": missing, "flex": lambda: FlexKernel(failing)}
    choice = choose_kernel([PLAIN], torch.bfloat16, CPU, candidates(**opened), (9, 0))
    assert choice.name == PACKED
    assert choice.refused[VARLEN].startswith("the output of a layer with 4 heads of 8 differs by")
    assert choice.refused[FLASH] == "ModuleNotFoundError: No module named 'flash_attn'"
    assert choice.refused[FLEX] == "RuntimeError: no kernel image is available"


def test_a_gpu_that_no_kernel_fits_is_an_error_with_every_reason() -> None:
    with pytest.raises(NotImplementedError, match="no kernel fits: spin_packed_varlen: it needs compute capability"):
        choose_kernel([PLAIN], torch.bfloat16, CPU, candidates()[:2], (7, 5))


def test_a_cpu_has_the_kernel_for_cpus() -> None:
    assert choose_kernel([PLAIN], torch.bfloat16, CPU) == (PACKED, attend_by_answer, {})
    assert {torch.float32, torch.bfloat16} <= TOLERANCE.keys()
