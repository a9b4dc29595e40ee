"""The Mamba-3 recurrence in float64, step by step (arXiv 2603.15569, SISO and MIMO).

Dims: B batch, L length, H heads, G groups of b and c, P head size, N state size, R MIMO rank,
S rope angles. Every function takes tensors of any floating dtype and computes in float64.
Nothing here is fast; everything here is meant to be read beside the paper.
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

EPS = 1e-5  # of every RMSNorm
MIN_DECAY = 1e-4  # floor of -A
LINEAR = 40.0  # softplus(u) = u above it, to float64 rounding

Step = Literal["softplus", "activated"]
Decay = Literal["heavy_tail", "softplus", "log_decay"]
Norm = Literal["rms", "normalised"]
Pairing = Literal["interleaved", "half"]


@dataclass(frozen=True)
class State:
    """What one sequence hands to its continuation."""

    phi: Tensor  # (B, H, S) accumulated angles in [0, 2 pi)
    h: Tensor  # (B, H, P, N)
    k: Tensor  # (B, R, H, N) last key, after bias and rotation
    x: Tensor  # (B, H, P) last input, before mimo_x

    @staticmethod
    def zeros(B: int, H: int, P: int, N: int, R: int, S: int, device: torch.device) -> "State":
        """The state before the first token."""
        shapes = ((B, H, S), (B, H, P, N), (B, R, H, N), (B, H, P))
        return State(*(torch.zeros(s, dtype=torch.float64, device=device) for s in shapes))

    def rows(self, start: int, stop: int) -> "State":
        """The states of sequences start to stop."""
        return State(*(t[start:stop].double() for t in (self.phi, self.h, self.k, self.x)))


@dataclass(frozen=True)
class Tokens:
    """The raw inputs after their activations: what the recurrence consumes."""

    x: Tensor  # (B, L, H, P)
    z: Tensor | None  # (B, L, H, P)
    b: Tensor  # (B, L, R, H, N) after norm and bias, before rotation
    c: Tensor  # (B, L, R, H, N)
    step: Tensor  # (B, L, H) D_t > 0
    log_decay: Tensor  # (B, L, H) A_t D_t <= 0
    lam: Tensor  # (B, L, H) in [0, 1]
    theta: Tensor  # (B, L, H, S)


def rotate(v: Tensor, phi: Tensor, pairing: Pairing) -> Tensor:
    """Rotate the first S pairs of v (..., N) by phi (..., S); the other dims pass unchanged.

    interleaved: pairs (2i, 2i + 1). half: pairs (i, i + N/2).
    """
    S, N = phi.shape[-1], v.shape[-1]
    i = torch.arange(S, device=v.device)
    first, second = (2 * i, 2 * i + 1) if pairing == "interleaved" else (i, i + N // 2)
    cos, sin = phi.cos(), phi.sin()
    out = v.clone()
    out[..., first] = v[..., first] * cos - v[..., second] * sin
    out[..., second] = v[..., first] * sin + v[..., second] * cos
    return out


def activate(
    x: Tensor,
    b: Tensor,
    c: Tensor,
    dt: Tensor,
    a: Tensor,
    lam: Tensor,
    theta: Tensor,
    z: Tensor | None,
    *,
    dt_bias: Tensor | None,
    b_norm: Tensor | None,
    c_norm: Tensor | None,
    b_bias: Tensor | None,
    c_bias: Tensor | None,
    step: Step,
    decay: Decay,
    norm: Norm,
) -> Tokens:
    """Apply the activations of one layer to the slices of its input projection.

    Shapes: x, z (B, L, H, P); b, c (B, L, R, G, N); dt, a, lam (B, L, H);
    theta (B, L, S) or (B, L, H, S); dt_bias (H); b_norm, c_norm (N); b_bias, c_bias (H, R, N).
    """
    H, G = x.shape[2], b.shape[3]

    dt = dt.double()
    if step == "softplus":
        dt = softplus(dt if dt_bias is None else dt + dt_bias.double(), threshold=LINEAR)

    u = a.double()
    if decay == "log_decay":
        log_decay = u
    elif decay == "heavy_tail":
        # 1/(1 - u) is clamped to u <= 0 because `where` evaluates both branches
        log_decay = -torch.where(u >= 0, 1 + u, 1 / (1 - u.clamp(max=0))).clamp(min=MIN_DECAY) * dt
    else:
        log_decay = -softplus(u, threshold=LINEAR).clamp(min=MIN_DECAY) * dt

    def keys(v: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        v = v.double()
        if norm == "rms":
            v = v * (v.square().mean(-1, keepdim=True) + EPS).rsqrt()
            v = v if weight is None else v * weight.double()
        v = v.repeat_interleave(H // G, dim=3)  # head h uses group h // (H/G)
        return v if bias is None else v + bias.double().transpose(0, 1)

    theta = math.pi * theta.double().tanh()
    if theta.ndim == 3:
        theta = theta.unsqueeze(2).expand(-1, -1, H, -1)
    return Tokens(
        x=x.double(),
        z=None if z is None else z.double(),
        b=keys(b, b_norm, b_bias),
        c=keys(c, c_norm, c_bias),
        step=dt,
        log_decay=log_decay,
        lam=lam.double().sigmoid(),
        theta=theta,
    )


def recur(
    tokens: Tokens, state: State, pairing: Pairing, d: Tensor | None, mimo_x: Tensor | None
) -> tuple[Tensor, State]:
    """Run the three-term recurrence over every token; returns y (B, L, R, H, P) before the gate.

    phi_t = phi_{t-1} + D_t theta_t (mod 2 pi)
    k_t,r = Rot(phi_t) b_t,r                       q_t,r = Rot(phi_t) c_t,r
    alpha_t = exp(A_t D_t)    beta_t = (1 - lam_t) D_t alpha_t    gamma_t = lam_t D_t
    h_t   = alpha_t h_{t-1} + beta_t sum_r x_{t-1,r} k_{t-1,r}^T + gamma_t sum_r x_t,r k_t,r^T
    y_t,r = h_t q_t,r + d x_t,r
    """
    L, R, H = tokens.x.shape[1], *tokens.b.shape[2:4]
    if L == 0:
        return tokens.x.unsqueeze(2).expand(-1, -1, R, -1, -1), state
    turned = tokens.step.unsqueeze(-1) * tokens.theta  # (B, L, H, S)
    phi, angles = state.phi.double(), []
    for turned_t in turned.unbind(1):
        phi = (phi + turned_t).remainder(2 * math.pi)
        angles.append(phi)
    phis = torch.stack(angles, 1).unsqueeze(2)  # (B, L, 1, H, S)

    k = rotate(tokens.b, phis, pairing)  # (B, L, R, H, N)
    q = rotate(tokens.c, phis, pairing).permute(1, 0, 3, 4, 2).flatten(1, 2)  # (L, B H, N, R)
    alpha = tokens.log_decay.exp()  # (B, L, H)
    beta, gamma = (1 - tokens.lam) * tokens.step * alpha, tokens.lam * tokens.step
    k_before = torch.cat((state.k.double().unsqueeze(1), k[:, :-1]), 1)
    x_before = torch.cat((state.x.double().unsqueeze(1), tokens.x[:, :-1]), 1)
    # beta_t sum_r x_{t-1,r} k_{t-1,r}^T + gamma_t sum_r x_t,r k_t,r^T is one product over 2R terms
    x_terms = (beta.unsqueeze(-1) * x_before, gamma.unsqueeze(-1) * tokens.x)
    left = torch.cat([per_rank(x, R, mimo_x) for x in x_terms], -1)  # (B, L, H, P, 2R)
    left = left.movedim(1, 0).flatten(1, 2)  # (L, B H, P, 2R)
    right = torch.cat((k_before, k), 2).permute(1, 0, 3, 2, 4).flatten(1, 2)  # (L, B H, 2R, N)
    decay = alpha.movedim(1, 0).flatten(1)[..., None, None]

    h, y = state.h.double().flatten(0, 1), []
    for decay_t, left_t, right_t, q_t in zip(decay, left, right, q, strict=True):
        h = torch.baddbmm(decay_t * h, left_t, right_t)  # (B H, P, N)
        y.append(h @ q_t)  # (B H, P, R)
    y_all = torch.stack(y, 1).view(-1, H, L, *y[0].shape[1:]).movedim(2, 1)  # (B, L, H, P, R)
    skip = 0.0 if d is None else d.double().view(H, 1, 1) * per_rank(tokens.x, R, mimo_x)
    out = (y_all + skip).permute(0, 1, 4, 2, 3)
    return out, State(phi, h.view_as(state.h), k[:, -1], tokens.x[:, -1])


def per_rank(x: Tensor, R: int, mimo_x: Tensor | None) -> Tensor:
    """x_r = x mimo_x_r, ranks last: (B, L, H, P) -> (B, L, H, P, R)."""
    x = x.unsqueeze(-1)
    return x.expand(*x.shape[:-1], R) if mimo_x is None else x * mimo_x.double().transpose(1, 2)


def reduce_ranks(
    y: Tensor,
    z: Tensor | None,
    mimo_z: Tensor | None,
    mimo_o: Tensor | None,
    out_norm: Tensor | None,
) -> Tensor:
    """o_t = sum_r mimo_o_r y_t,r silu(z_t mimo_z_r), with y normalised over P first by out_norm.

    y (B, L, R, H, P) -> (B, L, H, P); without mimo_o and with R > 1 the ranks stay.
    """
    R = y.shape[2]
    if out_norm is not None:
        y = y * (y.square().mean(-1, keepdim=True) + EPS).rsqrt() * out_norm.double()
    if z is not None:
        gate = z.unsqueeze(2).expand(-1, -1, R, -1, -1)
        y = y * silu(gate if mimo_z is None else gate * mimo_z.double().transpose(0, 1))
    if mimo_o is not None:
        return (y * mimo_o.double().transpose(0, 1)).sum(2)
    return y.squeeze(2) if R == 1 else y


def prefill(
    x: Tensor,
    b: Tensor,
    c: Tensor,
    dt: Tensor,
    a: Tensor,
    lam: Tensor,
    theta: Tensor,
    z: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    b_norm: Tensor | None = None,
    c_norm: Tensor | None = None,
    b_bias: Tensor | None = None,
    c_bias: Tensor | None = None,
    d: Tensor | None = None,
    mimo_x: Tensor | None = None,
    mimo_z: Tensor | None = None,
    mimo_o: Tensor | None = None,
    out_norm: Tensor | None = None,
    state: State | None = None,
    cu_seqlens: Tensor | None = None,
    step: Step = "softplus",
    decay: Decay = "heavy_tail",
    norm: Norm = "rms",
    pairing: Pairing = "interleaved",
) -> tuple[Tensor, State]:
    """Everything between a layer's two projections, over whole sequences.

    Shapes as in `activate`; d (H); mimo_x, mimo_z, mimo_o (H, R, P); out_norm (H, P).
    With cu_seqlens (num_sequences + 1) the tokens of all sequences are packed into B = 1 and the
    states have num_sequences rows; a zero-length sequence returns its state untouched.
    Returns the output as `reduce_ranks` shapes it, and the final state, all float64.
    """
    tokens = activate(
        x, b, c, dt, a, lam, theta, z,
        dt_bias=dt_bias, b_norm=b_norm, c_norm=c_norm, b_bias=b_bias, c_bias=c_bias,
        step=step, decay=decay, norm=norm,
    )  # fmt: skip
    (B, L, H, P), (R, N), S = x.shape, (b.shape[2], b.shape[4]), theta.shape[-1]
    bounds = [0, L] if cu_seqlens is None else [int(i) for i in cu_seqlens]
    rows = B if cu_seqlens is None else 1
    if state is None:
        state = State.zeros(rows * (len(bounds) - 1), H, P, N, R, S, x.device)

    outs, finals = [], []
    for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
        first = state.rows(i * rows, (i + 1) * rows)
        y, final = recur(span(tokens, start, stop), first, pairing, d, mimo_x)
        outs.append(y)
        finals.append(final)
    y = torch.cat(outs, 1)
    final = State(*(torch.cat(t) for t in zip(*map(parts, finals), strict=True)))
    return reduce_ranks(y, tokens.z, mimo_z, mimo_o, out_norm), final


def span(tokens: Tokens, start: int, stop: int) -> Tokens:
    """The tokens from start to stop."""
    cut = {n: v[:, start:stop] for n, v in vars(tokens).items() if v is not None}
    return replace(tokens, **cut)


def parts(state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four tensors of a state, in order."""
    return state.phi, state.h, state.k, state.x
