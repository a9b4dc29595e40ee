"""Softmax attention in plain PyTorch, some queries at a time, in float32 with rounded operands."""

import torch
from torch import Tensor

from ..plain import PlainCall, PlainProblem
from ..registry import Config, implements
from .precision import full_float32, rounding_to, wide

SCORES = 2**26  # numbers that a block of queries may make at a time


def supports(problem: PlainProblem, device: torch.device) -> str | None:
    """Everything is supported."""
    return None


@implements("attention.prefill", "torch", supports=supports)
def prefill(call: PlainCall, config: Config) -> None:
    """Every row and head at once."""
    call.store(attend(call.problem, **call.inputs))


@implements("attention.decode", "torch", supports=supports)
def decode(call: PlainCall, config: Config) -> None:
    """Write the new key and value at the end of the cache, and attend to all of it."""
    call.final["keys"][:, -1] = call.inputs["k"]
    call.final["values"][:, -1] = call.inputs["v"]
    q = call.inputs["q"].unsqueeze(1)
    y = attend(call.problem, q, call.final["keys"], call.final["values"])
    call.y.copy_(y.squeeze(1))


def attend(problem: PlainProblem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """y (B, L, H, P) of the last L of T tokens: q (B, L, H, N), k (B, T, G, N), v (B, T, G, P)."""
    dtype, rounded = wide(problem.dtype), rounding_to(problem.dtype)
    (B, L, H, N), (T, G) = q.shape, k.shape[1:3]
    k, v = (t.to(dtype).repeat_interleave(H // G, dim=2).transpose(1, 2) for t in (k, v))
    q = q.to(dtype).transpose(1, 2)  # (B, H, L, N)
    block = max(1, SCORES // (B * H * T))
    outs = []
    with full_float32():
        for start in range(0, L, block):
            part = q[:, :, start : start + block]
            ends = torch.arange(T - L + start, T - L + start + part.shape[2], device=q.device)
            later = torch.arange(T, device=q.device) > ends[:, None]  # (queries, T)
            scores = (part @ k.mT * N**-0.5).masked_fill(later, -torch.inf)
            weights = (scores - scores.amax(-1, keepdim=True)).exp()
            outs.append(rounded(weights) @ v / weights.sum(-1, keepdim=True))
    return torch.cat(outs, 2).transpose(1, 2)
