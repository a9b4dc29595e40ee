"""The Mamba-2 recurrence in float64, step by step (arXiv 2405.21060).

Dims: B batch, L length, H heads, G groups of b and c, P head size, N state size. Every function
takes tensors of any floating dtype and computes in float64. Meant to be read, not to be fast.
"""

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

LINEAR = 40.0  # softplus(u) = u above it, to float64 rounding


def prefill(
    x: Tensor,
    b: Tensor,
    c: Tensor,
    dt: Tensor,
    decay: Tensor,
    z: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    d: Tensor | None = None,
    h: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run whole sequences; returns y (B, L, H, P) and the final state h (B, H, P, N), float64.

    D_t = softplus(dt_t + dt_bias)
    h_t = exp(A D_t) h_{t-1} + D_t x_t b_t^T
    y_t = (h_t c_t + d x_t) silu(z_t)

    Shapes: x, z (B, L, H, P); b, c (B, L, G, N), head h using group h // (H/G); dt (B, L, H);
    decay (H), the negative A; dt_bias, d (H); h (B, H, P, N), zero if absent.
    """
    (B, L, H, P), (G, N) = x.shape, b.shape[2:]
    x, decay = x.double(), decay.double()
    b, c = (v.double().repeat_interleave(H // G, dim=2) for v in (b, c))  # (B, L, H, N)
    dt = dt.double() if dt_bias is None else dt.double() + dt_bias.double()
    step = softplus(dt, threshold=LINEAR)
    skip = x.new_zeros(H) if d is None else d.double()

    h = x.new_zeros(B, H, P, N) if h is None else h.double()
    y = x.new_empty(B, L, H, P)
    for t in range(L):
        alpha = (decay * step[:, t]).exp()  # (B, H)
        update = torch.einsum("bh,bhp,bhn->bhpn", step[:, t], x[:, t], b[:, t])
        h = alpha[..., None, None] * h + update
        y[:, t] = torch.einsum("bhpn,bhn->bhp", h, c[:, t]) + skip[:, None] * x[:, t]
    return (y if z is None else y * silu(z.double())), h
