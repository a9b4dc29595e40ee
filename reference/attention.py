"""Causal softmax attention in float64, one query at a time.

Dims: B batch, L length, T tokens seen, H heads, G heads of k and v, N size of q and k, P size of v.
Meant to be read, not to be fast.
"""

import torch
from torch import Tensor


def prefill(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """y_t = sum_{s <= t} softmax_s(q_t . k_s / sqrt(N)) v_s; returns y (B, L, H, P), float64.

    Shapes: q (B, L, H, N); k (B, T, G, N) and v (B, T, G, P), head h using group h // (H/G). The
    queries are those of the last L of T tokens.
    """
    (B, L, H, N), (T, G, P) = q.shape, v.shape[1:]
    q = q.double() * N**-0.5
    k, v = (t.double().repeat_interleave(H // G, dim=2) for t in (k, v))  # (B, T, H, ...)
    y = q.new_empty(B, L, H, P)
    for t in range(L):
        seen = T - L + t + 1
        scores = torch.einsum("bhn,bshn->bhs", q[:, t], k[:, :seen])
        y[:, t] = torch.einsum("bhs,bshp->bhp", scores.softmax(-1), v[:, :seen])
    return y
