"""Gated DeltaNet in plain PyTorch: the chunked WY form, in float32 with rounded operands.

Inside a chunk, with s_i the running sum of log alpha and A_ij = beta_i e^{s_i - s_j} k_i . k_j for
j < i, what each token adds to the state, v'_i, solves (I + A) v' = beta (v - e^s S k):

    T = (I + A)^-1    w = T (beta e^s k)    u = T (beta v)    v' = u - w S^T
    y_i = e^{s_i} S q_i + sum_{j<=i} e^{s_i - s_j} (q_i . k_j) v'_j
    S   = e^{s_C} S + sum_j e^{s_C - s_j} v'_j k_j^T            (for the next chunk)
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ...reference.gated_deltanet import normalised
from ..plain import PlainCall, PlainProblem
from ..registry import Config, implements
from .precision import Rounding, full_float32, rounding_to, wide
from .prefill import running_sum

CHUNK = 64


def supports(problem: PlainProblem, device: torch.device) -> str | None:
    """Everything is supported."""
    return None


@implements("gdn.decode", "torch", supports=supports)
@implements("gdn.prefill", "torch", supports=supports)
def run(call: PlainCall, config: Config) -> None:
    """Run every row and head at once; a decode step is a sequence of one token."""
    p, dtype = call.problem, wide(call.problem.dtype)
    raw = {name: tensor.to(dtype) for name, tensor in call.sequence().items()}
    rounded = rounding_to(dtype if p.decodes else p.dtype)
    q, k = (normalised(raw[n]).repeat_interleave(p.H // p.G, dim=2) for n in "qk")  # (B, L, H, N)
    q, v = q * p.N**-0.5, raw["v"]
    log_alpha = raw["decay"] * softplus(raw["a"] + raw["dt_bias"], threshold=40)  # (B, L, H)
    beta = raw["b"].sigmoid()
    h = v.new_zeros(p.B, p.H, p.P, p.N) if call.state is None else call.state["h"].to(dtype)
    outs: list[Tensor] = []
    with full_float32():
        for start in range(0, v.shape[1], CHUNK):
            at = slice(start, start + CHUNK)
            columns = Columns(*(t[:, at].transpose(1, 2) for t in (q, k, v, log_alpha, beta)))
            y, h = chunk(rounded, columns, h)
            outs.append(y.transpose(1, 2))
    call.store(torch.cat(outs, 1), h=h)


class Columns(NamedTuple):
    """The tokens of one chunk."""

    q: Tensor  # (B, H, C, N)
    k: Tensor  # (B, H, C, N)
    v: Tensor  # (B, H, C, P)
    log_alpha: Tensor  # (B, H, C)
    beta: Tensor  # (B, H, C)


def chunk(rounded: Rounding, columns: Columns, h: Tensor) -> tuple[Tensor, Tensor]:
    """y (B, H, C, P) and the next h (B, H, P, N)."""
    q, k, v, log_alpha, beta = columns
    C = log_alpha.shape[-1]
    s = running_sum(log_alpha, -1)
    before = torch.ones(C, C, dtype=torch.bool, device=q.device).tril()
    falls = (s.unsqueeze(-1) - s.unsqueeze(-2)).masked_fill(~before, -torch.inf).exp()  # j <= i
    q, k, s_end = rounded(q), rounded(k), s[..., -1:]
    within = beta.unsqueeze(-1) * falls * (k @ k.mT)
    unit = torch.eye(C, dtype=v.dtype, device=v.device)
    T = torch.linalg.solve_triangular(unit + within.tril(-1), unit, upper=False)
    T = rounded(T)
    w = T @ rounded((beta * s.exp()).unsqueeze(-1) * k)  # (B, H, C, N)
    u = T @ rounded(beta.unsqueeze(-1) * v)  # (B, H, C, P)
    new = u - rounded(w) @ rounded(h).mT
    y = s.exp().unsqueeze(-1) * (q @ rounded(h).mT) + rounded(falls * (q @ k.mT)) @ rounded(new)
    to_end = rounded((s_end - s).exp().unsqueeze(-1) * new)
    return y, s_end.exp().unsqueeze(-1) * h + to_end.mT @ k
