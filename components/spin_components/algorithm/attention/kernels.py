"""The choice of a kernel of packed attention: the fastest that the device has, that supports the layers of a model, and
that computes what the kernel for CPUs does.

On a GPU they are tried in this order: torch's kernel for sequences of varying length, that of the package flash-attn,
flex attention, and at last a call for each answer, which is torch's own attention and always fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from spin_components.algorithm.attention.varlen import MAX_HEAD_SIZE, VarlenKernel, flash_attn_varlen, torch_varlen
from spin_components.algorithm.packing import PACKED, AttentionOptions, Kernel, attend_by_answer

VARLEN, FLASH, FLEX = f"{PACKED}_varlen", f"{PACKED}_package_varlen", f"{PACKED}_flex"
"""Names of the kernels as attention implementations of `transformers`, which takes every name with "flash" in it for
its own."""

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""Largest difference of a kernel's output and gradients from those of float32, relative to the largest of them."""

_PROBED: tuple[tuple[int, ...], ...] = ((5, 2, 5), (2, 6, 4), (1, 1, 0))
_PROBED_WINDOW, _PROBED_CAP = 4, 1.0
_OLDEST_GPU = (8, 0)
"""Compute capability that torch's and flash-attn's kernels need (Ampere)."""


class LayerNeeds(NamedTuple):
    """What a layer's attention needs of a kernel."""

    heads: int
    key_heads: int
    head_size: int
    value_size: int
    has_window: bool
    has_softcap: bool
    has_sinks: bool


def layer_needs(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> LayerNeeds:
    """The needs of a call; shapes as in `packing.Kernel`."""
    return LayerNeeds(
        heads=query.shape[1],
        key_heads=key.shape[1],
        head_size=query.shape[-1],
        value_size=value.shape[-1],
        has_window=options.window is not None,
        has_softcap=options.softcap is not None,
        has_sinks=options.sinks is not None,
    )


@dataclass(frozen=True)
class Recorder:
    """A `Kernel` that records what the layers of a model need, and computes as its own.

    Attributes:
        layers: found needs.
        kernel: that computes.
    """

    layers: set[LayerNeeds]
    kernel: Kernel

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, options: AttentionOptions) -> Tensor:
        self.layers.add(layer_needs(query, key, value, options))
        return self.kernel(query, key, value, lengths, options)


class Candidate(NamedTuple):
    """A kernel that may be chosen.

    Attributes:
        name: in `transformers`.
        open: makes the kernel; raises ImportError where the installed packages have none.
        misfit: why it does not support a layer in a dtype on a GPU of a compute capability; empty if it does.
    """

    name: str
    open: Callable[[], Kernel]
    misfit: Callable[[LayerNeeds, torch.dtype, tuple[int, int]], str]


def varlen_misfit(
    layer: LayerNeeds, dtype: torch.dtype, capability: tuple[int, int], *, has_softcap: bool = False
) -> str:
    """Why torch's or flash-attn's kernel does not support a layer; empty if it does.

    The limits are those of FlashAttention 2: Ampere or later, 16 bits, heads of at most 256, values as wide as keys.
    """
    if capability < _OLDEST_GPU:
        return f"it needs compute capability 8.0, the GPU has {capability[0]}.{capability[1]}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it computes in bf16 only, not in {str(dtype).removeprefix('torch.')}"
    if layer.head_size > MAX_HEAD_SIZE:
        return f"heads of {layer.head_size} are above {MAX_HEAD_SIZE}"
    if layer.value_size != layer.head_size:
        return f"values of {layer.value_size} are not as wide as keys of {layer.head_size}"
    if layer.has_sinks:
        return "it has no attention sinks"
    return "" if has_softcap or not layer.has_softcap else "it has no soft-capping"


def _package_misfit(layer: LayerNeeds, dtype: torch.dtype, capability: tuple[int, int]) -> str:
    return varlen_misfit(layer, dtype, capability, has_softcap=True)


def _supports_all(layer: LayerNeeds, dtype: torch.dtype, capability: tuple[int, int]) -> str:
    return ""


def _open_flex() -> Kernel:
    from spin_components.algorithm.attention.flex import FlexKernel

    return FlexKernel()


ON_GPU = (
    Candidate(VARLEN, lambda: VarlenKernel(torch_varlen()), varlen_misfit),
    Candidate(FLASH, lambda: VarlenKernel(flash_attn_varlen(), has_softcap=True), _package_misfit),
    Candidate(FLEX, _open_flex, _supports_all),
    Candidate(PACKED, lambda: attend_by_answer, _supports_all),
)
"""The kernels of GPUs, the fastest first."""


class Choice(NamedTuple):
    """A kernel and its name; and why those before it were not chosen, by name."""

    name: str
    kernel: Kernel
    refused: dict[str, str]


def choose_kernel(
    layers: Iterable[LayerNeeds],
    dtype: torch.dtype,
    device: torch.device,
    candidates: Iterable[Candidate] = ON_GPU,
    capability: tuple[int, int] | None = None,
) -> Choice:
    """Choose the first candidate that supports every layer and passes `check_kernel`; on a CPU, the one for CPUs.

    Args:
        layers: of the model.
        dtype: of the products: bf16 under autocast, else float32.
        device: that computes.
        candidates: in their order.
        capability: compute capability of the GPU; None asks torch.

    Raises:
        NotImplementedError: none fits; its text says why, kernel by kernel.
    """
    if device.type == "cpu" and capability is None:
        return Choice(PACKED, attend_by_answer, {})
    capability = torch.cuda.get_device_capability(device) if capability is None else capability
    layers, refused = list(layers), {}
    for candidate in candidates:
        reasons = filter(None, (candidate.misfit(layer, dtype, capability) for layer in layers))
        if reason := next(reasons, ""):
            refused[candidate.name] = reason
            continue
        try:
            kernel = candidate.open()
            reason = check_kernel(kernel, layers, dtype, device)
        except Exception as error:  # of compilers and drivers, any: the next kernel may do
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        if not reason:
            return Choice(candidate.name, kernel, refused)
        refused[candidate.name] = reason
    raise NotImplementedError("no kernel fits: " + "; ".join(f"{name}: {why}" for name, why in refused.items()))


def check_kernel(kernel: Kernel, layers: Iterable[LayerNeeds], dtype: torch.dtype, device: torch.device) -> str:
    """Compare a kernel's output and gradients for small random groups with those of float32.

    Returns: an empty string, or what differs.
    """
    for layer in layers:
        for what, found, expected in _compared(kernel, layer, dtype, device):
            difference = float((found.float() - expected).abs().max() / expected.abs().max())
            if not difference <= TOLERANCE[dtype]:
                return f"{what} of a layer with {_described(layer)} differs by {difference:.1e}"
    return ""


def _described(layer: LayerNeeds) -> str:
    parts = [f"{layer.heads} heads of {layer.head_size}"]
    parts += [name for name, has in zip(("window", "soft-capping", "sinks"), layer[4:], strict=True) if has]
    return ", ".join(parts)


def _compared(
    kernel: Kernel, layer: LayerNeeds, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Output and gradients: their name, the kernel's, and those of float32."""
    generator = torch.Generator().manual_seed(0)
    num_tokens = sum(map(sum, _PROBED))
    shapes = [(layer.heads, layer.head_size), (layer.key_heads, layer.head_size), (layer.key_heads, layer.value_size)]
    inputs = [torch.randn(1, heads, num_tokens, size, generator=generator) for heads, size in shapes]
    weights = torch.randn(1, layer.heads, num_tokens, layer.value_size, generator=generator).to(device, dtype)
    options = AttentionOptions(
        window=_PROBED_WINDOW if layer.has_window else None,
        softcap=_PROBED_CAP if layer.has_softcap else None,
        sinks=torch.randn(layer.heads, generator=generator).to(device) if layer.has_sinks else None,
    )
    lengths = torch.tensor(_PROBED)
    results = []
    callers: tuple[tuple[Kernel, torch.dtype], ...] = ((kernel, dtype), (attend_by_answer, torch.float32))
    for each, compute in callers:
        query, key, value = (tensor.to(device, dtype).to(compute).requires_grad_() for tensor in inputs)
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            output = each(query, key, value, lengths, options)
            gradients = torch.autograd.grad(output, (query, key, value), weights.to(output.dtype))
        results.append([output.detach(), *gradients])
    names = ("the output", "the gradient of queries", "the gradient of keys", "the gradient of values")
    yield from zip(names, *results, strict=True)
