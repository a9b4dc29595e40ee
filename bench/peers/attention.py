"""Softmax attention by PyTorch's scaled_dot_product_attention, which picks its own kernel.

A decode step appends the new key and value to the cache, two copies, and attends to all of it: all
three are timed.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ...kernels.bound import Arguments, Stages
from ...kernels.plain import PlainCall, PlainProblem
from ...kernels.registry import adapts


def supports(problem: PlainProblem, device: torch.device) -> str | None:
    """Why a problem is refused, or None."""
    return None


def prepare_prefill(call: PlainCall, config: None) -> Arguments:
    """The call's own tensors; heads come second, as views."""
    return {name: tensor.transpose(1, 2) for name, tensor in call.inputs.items()}


def prefill(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """y (B, H, L, P)."""
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def prepare_decode(call: PlainCall, config: None) -> Arguments:
    """The call's own tensors."""
    return call.inputs | call.final


def decode(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """y (B, H, 1, P); the new token is the last of the cache."""
    keys[:, -1].copy_(k)
    values[:, -1].copy_(v)
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)  # (B, G, T, P)
    return scaled_dot_product_attention(q.unsqueeze(2), keys, values, enable_gqa=True)


def collect(call: PlainCall, arguments: Arguments, results: Any) -> None:
    """Copy y; the cache is the call's own."""
    call.store(results.transpose(1, 2))


adapts("attention.prefill", "sdpa", Stages(prepare_prefill, prefill, collect), supports=supports)
# from batch 16 on PyTorch takes cuDNN's kernel, which sums parts of the cache as they come
adapts(
    "attention.decode", "sdpa", Stages(prepare_decode, decode, collect), supports=supports,
    deterministic=False,
)  # fmt: skip
