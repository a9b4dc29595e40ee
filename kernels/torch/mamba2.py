"""Mamba-2 in plain PyTorch: chunks as in `prefill.py`, or one step, in float32.

Mamba-3's chunk with lam = 1 and no angles: gamma and the column weight are both D.
"""

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from ..plain import PlainCall, PlainProblem
from ..registry import Config, implements
from .precision import full_float32, rounding_to, wide
from .prefill import chunk

CHUNK = 64


def supports(problem: PlainProblem, device: torch.device) -> str | None:
    """Everything is supported."""
    return None


@implements("mamba2.decode", "torch", supports=supports)
@implements("mamba2.prefill", "torch", supports=supports)
def run(call: PlainCall, config: Config) -> None:
    """Run every row and head at once; a decode step is a sequence of one token."""
    p, dtype = call.problem, wide(call.problem.dtype)
    raw = {name: tensor.to(dtype) for name, tensor in call.sequence().items()}
    rounded = rounding_to(dtype if p.decodes else p.dtype)
    per_group = p.H // p.G
    x, L = raw["x"], raw["x"].shape[1]  # (B, L, H, P)
    k, q = (raw[name].repeat_interleave(per_group, dim=2) for name in "bc")  # (B, L, H, N)
    step = softplus(raw["dt"] + raw["dt_bias"], threshold=40)  # (B, L, H)
    h = x.new_zeros(p.B, p.H, p.P, p.N) if call.state is None else call.state["h"].to(dtype)
    outs: list[Tensor] = []
    with full_float32():
        for start in range(0, L, CHUNK):
            at = slice(start, min(start + CHUNK, L))
            D = step[:, at].transpose(1, 2)  # (B, H, C)
            c_, b_, x_ = (v[:, at].transpose(1, 2) for v in (q, k, x))  # (B, H, C, ...)
            y, h = chunk(rounded, c_, b_, x_, h, raw["decay"][:, None] * D, D, D)
            outs.append(y.transpose(1, 2))
    y = torch.cat(outs, 1) + raw["d"][:, None] * x
    call.store(y * silu(raw["z"]), h=h)
