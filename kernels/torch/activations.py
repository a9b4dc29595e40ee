"""What prefill and decode share: activations, rotation and the gate, in float32 or float64.

Shapes are those of one token with any leading dims: (B, L) in prefill, (B) in decode.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from ..problem import Options
from ..tensors import Inputs, Params
from .precision import wide

EPS = 1e-5  # of every RMSNorm
MIN_DECAY = 1e-4  # floor of -A
ZERO_DECAY = {torch.float32: -104.0, torch.float64: -746.0}  # exp of it is 0
TWO_PI = 2 * math.pi


@dataclass(frozen=True, slots=True)
class Steps:
    """The scalars of each token and head."""

    step: Tensor  # (..., H) D_t
    log_decay: Tensor  # (..., H) A_t D_t
    gamma: Tensor  # (..., H) lam_t D_t, the weight of this token
    behind: Tensor  # (..., H) (1 - lam_t) D_t, beta_t / alpha_t, the weight of the token before


def steps(inputs: Inputs, params: Params, options: Options) -> Steps:
    """Step size, decay and trapezoid weights.

    D = softplus(dt + dt_bias), A = -max(f(a), 1e-4), lam = sigmoid(lam).
    """
    dtype = wide(inputs.x.dtype)
    step, u, lam = inputs.dt.to(dtype), inputs.a.to(dtype), inputs.lam.to(dtype).sigmoid()
    if options.step == "softplus":
        step = step if params.dt_bias is None else step + params.dt_bias
        step = softplus(step, threshold=40)
    if options.decay == "log_decay":
        log_decay = u
    else:
        if options.decay == "heavy_tail":
            rate = torch.where(u >= 0, 1 + u, 1 / (1 - u.clamp(max=0)))
        else:
            rate = softplus(u, threshold=40)
        log_decay = -rate.clamp(min=MIN_DECAY) * step
    # a finite floor, so that differences of sums stay numbers
    log_decay = log_decay.clamp(min=ZERO_DECAY[dtype])
    return Steps(step, log_decay, lam * step, (1 - lam) * step)


def angle_steps(theta: Tensor, step: Tensor) -> Tensor:
    """D pi tanh(theta): theta (..., S) or (..., H, S), step (..., H) -> (..., H, S)."""
    rates = math.pi * theta.to(step.dtype).tanh()
    if rates.ndim == step.ndim:
        rates = rates.unsqueeze(-2)
    return step.unsqueeze(-1) * rates


def whole_turns_off(phi: Tensor) -> Tensor:
    """phi mod 2 pi, in [0, 2 pi).

    2 pi is taken in two parts, the first of 8 bits: float32's 2 pi is 1.7e-7 too large, which adds
    up over thousands of turns.
    """
    turns = (phi.detach() / TWO_PI).floor()
    phi = phi - turns * 6.28125 - turns * (TWO_PI - 6.28125)
    return phi.clamp(min=0).remainder(TWO_PI)  # rounding can leave it just outside


def keys(v: Tensor, weight: Tensor | None, bias: Tensor | None, H: int, options: Options) -> Tensor:
    """Normalise b or c over N and add the bias: (..., R, G, N) -> (..., R, H, N)."""
    v = v.to(wide(v.dtype))
    if options.norm == "rms":
        v = v * (v.square().mean(-1, keepdim=True) + EPS).rsqrt()
        v = v if weight is None else v * weight
    v = v.repeat_interleave(H // v.shape[-2], dim=-2)
    return v if bias is None else v + bias.transpose(0, 1)


def rotate(v: Tensor, phi: Tensor, options: Options) -> Tensor:
    """Rotate the first S pairs of v (..., R, H, N) by phi (..., H, S); other dims pass."""
    S, half = phi.shape[-1], v.shape[-1] // 2
    cos, sin = phi.cos().unsqueeze(-3), phi.sin().unsqueeze(-3)
    if options.pairing == "interleaved":
        first, second = v[..., 0 : 2 * S : 2], v[..., 1 : 2 * S : 2]
    else:
        first, second = v[..., :S], v[..., half : half + S]
    turned = first * cos - second * sin, first * sin + second * cos
    if options.pairing == "interleaved":
        return torch.cat((torch.stack(turned, -1).flatten(-2), v[..., 2 * S :]), -1)
    return torch.cat((turned[0], v[..., S:half], turned[1], v[..., half + S :]), -1)


def by_rank(x: Tensor, weight: Tensor | None, R: int) -> Tensor:
    """x_r = weight_r x: x (..., H, P), weight (H, R, P) -> (..., R, H, P)."""
    x = x.unsqueeze(-3)
    if weight is None:
        return x.expand(*x.shape[:-3], R, *x.shape[-2:])
    return x * weight.transpose(0, 1)


def output(y: Tensor, z: Tensor | None, params: Params) -> Tensor:
    """Norm, gate and sum over ranks: y (..., R, H, P) -> (..., H, P), or the ranks stay.

    o = sum_r mimo_o_r norm(y_r) out_norm silu(z mimo_z_r)
    """
    R = y.shape[-3]
    if params.out_norm is not None:
        y = y * (y.square().mean(-1, keepdim=True) + EPS).rsqrt() * params.out_norm
    if z is not None:
        y = y * silu(by_rank(z.to(y.dtype), params.mimo_z, R))
    if params.mimo_o is not None:
        return (y * params.mimo_o.transpose(0, 1)).sum(-3)
    return y.squeeze(-3) if R == 1 else y
