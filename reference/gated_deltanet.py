"""The Gated DeltaNet recurrence in float64, step by step (arXiv 2412.06464).

Dims: B batch, L length, H value heads, G heads of q and k, P value size, N key size. Every function
takes tensors of any floating dtype and computes in float64. Meant to be read, not to be fast.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

LINEAR = 40.0  # softplus(u) = u above it, to float64 rounding
EPS = 1e-6  # of the norm of q and k, as flash-linear-attention has it


def prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    decay: Tensor,
    dt_bias: Tensor,
    h: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run whole sequences; returns y (B, L, H, P) and the final state h (B, H, P, N), float64.

    k_t, q_t are normalised over N, q_t also by 1 / sqrt(N)
    alpha_t = exp(decay softplus(a_t + dt_bias))    beta_t = sigmoid(b_t)
    h_t = alpha_t h_{t-1} + beta_t (v_t - alpha_t h_{t-1} k_t) k_t^T
    y_t = h_t q_t

    Shapes: q, k (B, L, G, N), head h using group h // (H/G); v (B, L, H, P); a, b (B, L, H);
    decay (H), negative; dt_bias (H); h (B, H, P, N), zero if absent.
    """
    (B, L, H, P), (G, N) = v.shape, k.shape[2:]
    v = v.double()
    q, k = (normalised(t.double()).repeat_interleave(H // G, dim=2) for t in (q, k))  # (B, L, H, N)
    q = q * N**-0.5
    alpha = (decay.double() * softplus(a.double() + dt_bias.double(), threshold=LINEAR)).exp()
    beta = b.double().sigmoid()

    h = v.new_zeros(B, H, P, N) if h is None else h.double()
    y = v.new_empty(B, L, H, P)
    for t in range(L):
        h = alpha[:, t, :, None, None] * h
        missing = v[:, t] - torch.einsum("bhpn,bhn->bhp", h, k[:, t])
        h = h + torch.einsum("bh,bhp,bhn->bhpn", beta[:, t], missing, k[:, t])
        y[:, t] = torch.einsum("bhpn,bhn->bhp", h, q[:, t])
    return y, h


def normalised(t: Tensor) -> Tensor:
    """t / sqrt(sum t^2 + eps), over the last dim."""
    return t * (t.square().sum(-1, keepdim=True) + EPS).rsqrt()
